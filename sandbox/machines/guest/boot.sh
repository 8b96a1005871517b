#!/bin/sh
# Runs as process 1 of a server, in namespaces of its own, and turns what it sees into the server's disk.
#   boot.sh DISK PACKAGE: DISK as sandbox/machines/disk.py makes it, PACKAGE what cloud-init is unpacked in.
# Its standard output is the program init's, which tells there when the SSH server answers.
set -eu
disk=$1
package=$2
root=$disk/root

mount --bind "$root" "$root"
for tree in usr etc var/lib/dpkg; do
    lower=/$tree
    if [ -d "$package/$tree" ]; then
        lower=$package/$tree:$lower
    fi
    mount -t overlay -o "lowerdir=$lower,upperdir=$disk/upper/$tree,workdir=$disk/work/$tree" sandbox "$root/$tree"
done

mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
# Only /proc/sys/net is the server's own; the rest is the whole machine's kernel.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
mount -o remount,bind,rw "$root/proc/sys/net"
mount --bind "$disk/meminfo" "$root/proc/meminfo"
if [ -e "$root/proc/sysrq-trigger" ]; then
    mount --bind /dev/null "$root/proc/sysrq-trigger"
fi

mount -t sysfs -o nosuid,nodev,noexec,ro sysfs "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"

mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in "null 3" "zero 5" "full 7" "random 8" "urandom 9"; do
    mknod -m 666 "$root/dev/${device% *}" c 1 "${device#* }"
done
mknod -m 666 "$root/dev/tty" c 5 0
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"

mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"

cd "$root"
mkdir run/machine
pivot_root . run/machine
umount -l /run/machine
rmdir /run/machine

# What a server may do to its kernel, but not to the machine's that it runs on.
exec setpriv \
    --bounding-set=-sys_boot,-sys_module,-sys_rawio,-sys_time,-wake_alarm,-mac_admin,-mac_override \
    --inh-caps=-all \
    env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root \
    PYTHONPATH=/usr/lib/sandbox /usr/bin/python3 -sB -m sandbox.machines.guest.init
