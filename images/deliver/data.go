package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
)

const (
	caddyfile = "/etc/caddy/Caddyfile"
	// what is in them is told by digests, and removed once the Caddyfile names it no more
	sites        = "/srv/.sites"
	certificates = "/etc/caddy/.certificates"
	secrets      = "/etc/caddy/.secrets"
	// each file of a site once, under its SHA-256; trees are links to them
	store = sites + "/.files"
	// files on their way, perhaps cut short
	incoming = sites + "/.incoming"
)

// unfinished is the name of a folder that is being made.
const unfinished = ".unfinished"

var (
	digest = regexp.MustCompile(`^[0-9a-f]{16}$`)
	named  = regexp.MustCompile(`/(?:srv/\.sites/[^/\s"]+|etc/caddy/\.certificates|etc/caddy/\.secrets)/[0-9a-f]{16}\b`)
)

func missingOf(files []string) ([]string, error) {
	if err := adoptIncoming(); err != nil {
		return nil, err
	}
	var missing []string
	for _, sum := range files {
		if _, err := os.Lstat(filepath.Join(store, sum)); err != nil {
			missing = append(missing, sum)
		}
	}
	return missing, nil
}

// adoptIncoming takes into the store what came in whole, from this run or one that was cut short.
func adoptIncoming() error {
	found, err := entries(incoming)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(store, 0o755); err != nil {
		return err
	}
	for _, entry := range found {
		path := filepath.Join(incoming, entry.Name())
		sum, err := sumOf(path)
		if err != nil || sum != entry.Name() {
			err = os.RemoveAll(path)
		} else if err = sync(path); err == nil {
			err = os.Rename(path, filepath.Join(store, sum))
		}
		if err != nil {
			return err
		}
	}
	return syncFolder(store)
}

func sumOf(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// place makes the folder path whole or not at all, unless it is there.
func place(path string, write func(string) error) error {
	if named.FindString(path) != path {
		return fmt.Errorf("%s is no place for data", path)
	}
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	folder := filepath.Join(filepath.Dir(path), unfinished)
	if err := os.RemoveAll(folder); err != nil {
		return err
	}
	if err := os.Mkdir(folder, 0o755); err != nil {
		return err
	}
	if err := write(folder); err != nil {
		return errors.Join(err, os.RemoveAll(folder))
	}
	if err := os.Rename(folder, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

func (t Tree) write(folder string) error {
	made := map[string]bool{folder: true}
	within := func(name string) (string, error) {
		if !filepath.IsLocal(name) {
			return "", fmt.Errorf("%q is not within its folder", name)
		}
		path := filepath.Join(folder, name)
		if parent := filepath.Dir(path); !made[parent] {
			made[parent] = true
			return path, os.MkdirAll(parent, 0o755)
		}
		return path, nil
	}
	for name, sum := range t.Files {
		path, err := within(name)
		if err == nil {
			err = link(sum, path)
		}
		if err != nil {
			return err
		}
	}
	for name, target := range t.Links {
		path, err := within(name)
		if err == nil {
			err = os.Symlink(target, path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// link gives a file of the store a name. A file system has a limit of names for one file, such as
// ext4's 65000: past it the file is stored anew.
func link(sum, path string) error {
	stored := filepath.Join(store, sum)
	err := os.Link(stored, path)
	if errors.Is(err, fs.ErrNotExist) {
		return problem{"changed", sum}
	}
	if !errors.Is(err, syscall.EMLINK) {
		return err
	}
	another := stored + ".new"
	if err := copyFile(stored, another); err != nil {
		return err
	}
	if err := os.Rename(another, stored); err != nil {
		return err
	}
	return os.Link(stored, path)
}

func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	target, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	if err = errors.Join(err, target.Sync(), target.Close()); err != nil {
		return err
	}
	// file_server tells visitors' browsers by it whether they have the file already
	return os.Chtimes(to, info.ModTime(), info.ModTime())
}

func (p Private) write(folder string, owner int) error {
	for name, content := range p.Files {
		if filepath.Base(name) != name {
			return fmt.Errorf("%q is no file's name", name)
		}
		path := filepath.Join(folder, name)
		if err := writeFile(path, content, 0o600); err != nil {
			return err
		}
		if err := os.Chown(path, owner, -1); err != nil {
			return err
		}
	}
	return errors.Join(os.Chmod(folder, 0o700), os.Chown(folder, owner, -1))
}

// removeUnnamed removes the data that the Caddyfile in place does not name.
func removeUnnamed() error {
	text, err := os.ReadFile(caddyfile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	kept := map[string]bool{}
	for _, path := range named.FindAllString(string(text), -1) {
		kept[path] = true
	}
	folders := []string{certificates, secrets}
	found, err := entries(sites)
	if err != nil {
		return err
	}
	for _, site := range found {
		path := filepath.Join(sites, site.Name())
		if path != store && path != incoming {
			folders = append(folders, path)
		}
	}
	for _, folder := range folders {
		if err := removeOthers(folder, kept); err != nil {
			return err
		}
	}
	return removeUnlinked()
}

func removeOthers(folder string, kept map[string]bool) error {
	found, err := entries(folder)
	if err != nil {
		return err
	}
	for _, entry := range found {
		path := filepath.Join(folder, entry.Name())
		ours := digest.MatchString(entry.Name()) || entry.Name() == unfinished
		if ours && !kept[path] {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	// Once it is empty; else it says so, which is no error.
	_ = os.Remove(folder)
	return nil
}

// removeUnlinked removes the stored files that are in no tree any more.
func removeUnlinked() error {
	found, err := entries(store)
	if err != nil {
		return err
	}
	for _, entry := range found {
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if status, ok := info.Sys().(*syscall.Stat_t); ok && status.Nlink == 1 {
			if err := os.Remove(filepath.Join(store, entry.Name())); err != nil {
				return err
			}
		}
	}
	// Those that are empty go; the others say so, which is no error.
	for _, folder := range []string{incoming, store, sites} {
		_ = os.Remove(folder)
	}
	return nil
}

// entries is os.ReadDir, for which a folder that is not there is empty.
func entries(folder string) ([]os.DirEntry, error) {
	found, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return found, err
}

func writeFile(path string, content []byte, mode os.FileMode) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	return errors.Join(err, file.Sync(), file.Close())
}

func sync(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

func syncFolder(path string) error { return sync(path) }
