// Command deliver puts what belongs to a Caddy configuration in place, and has
// Caddy take it. It runs in a container that shares Caddy's volumes and network.
// Its argument names an order: what to do is in a file, and so is what came of it.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Where orders come in and results are left.
const (
	exchange = "/etc/caddy/.incoming"
	lock     = exchange + "/lock"
)

// An Order says what to do. Do is "missing", "apply", "dial" or "ask".
type Order struct {
	Do string
	// missing: SHA-256 sums of files, in hexadecimal
	Files []string
	// apply
	Caddyfile string
	Trees     []Tree
	Private   []Private
	// apply: seconds for Caddy's admin API to answer; 0: Caddy does not run, and nothing is asked of it.
	// ask: seconds for the answer
	Wait float64
	// bytes that Caddy's heap may come to; 0: any number
	HeapLimit uint64
	// apply: the user that Caddy runs as
	Owner int
	// dial: what is to answer
	Upstreams []Upstream
	// ask: what to GET until it is answered with a 2xx status
	URL string
}

// An Upstream is a server that sites send their requests to, by HOST:PORT; TLS is null for plain HTTP.
type Upstream struct {
	Address string
	TLS     *struct {
		ServerName string   // empty: the address's own
		Trust      [][]byte // certificates, DER; none: the public authorities
		Verify     bool
	}
}

// A Tree is a folder of a site. Its path tells its content: one that is there is the same.
type Tree struct {
	Path  string
	Files map[string]string // path in the tree: SHA-256
	Links map[string]string // path in the tree: where it leads
}

// A Private is a folder of files for Caddy alone, such as keys. Its path tells its content too.
type Private struct {
	Path  string
	Files map[string][]byte
}

// A Result says what came of an order.
type Result struct {
	// what stands in the way; Kind is "refused" for Caddy's own answer, "silent" if it gives none,
	// "memory" for too little of it, "changed" for a file that came in otherwise, "failed" for the rest
	Error, Kind string `json:",omitempty"`
	// missing: those of the files that are not here, and bytes that there is room for
	Missing []string `json:",omitempty"`
	Free    uint64   `json:",omitempty"`
	// apply: bytes of Caddy's heap before and after, collected
	HeapBefore, HeapAfter uint64 `json:",omitempty"`
	// dial: why an upstream does not answer, by its number
	Unanswered map[int]string `json:",omitempty"`
}

// A problem is an error of a kind that who reads the result tells apart.
type problem struct{ kind, said string }

func (p problem) Error() string { return p.said }

func main() {
	if len(os.Args) != 2 || filepath.Base(os.Args[1]) != os.Args[1] {
		fmt.Fprintln(os.Stderr, "usage: deliver ORDER")
		os.Exit(2)
	}
	order := filepath.Join(exchange, "order-"+os.Args[1])
	done, err := carryOut(order)
	if err != nil {
		done.Kind, done.Error = "failed", err.Error()
		var known problem
		if errors.As(err, &known) {
			done.Kind = known.kind
		}
	}
	// Orders have what is nobody else's business.
	_ = os.Remove(order)
	said, err := json.Marshal(done)
	if err == nil {
		err = writeFile(filepath.Join(exchange, "result-"+os.Args[1]), said, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func carryOut(order string) (Result, error) {
	// One of a run that was killed may be at work still. The lock ends with the process.
	held, err := os.OpenFile(lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return Result{}, err
	}
	defer held.Close()
	if err := syscall.Flock(int(held.Fd()), syscall.LOCK_EX); err != nil {
		return Result{}, err
	}
	if err := removeResults(); err != nil {
		return Result{}, err
	}
	var given Order
	text, err := os.ReadFile(order)
	if err != nil {
		return Result{}, err
	}
	if err := json.Unmarshal(text, &given); err != nil {
		return Result{}, fmt.Errorf("%s: %w", order, err)
	}
	switch given.Do {
	case "missing":
		missing, err := missingOf(given.Files)
		if err != nil {
			return Result{}, err
		}
		free, err := room()
		return Result{Missing: missing, Free: free}, err
	case "apply":
		return apply(given)
	case "dial":
		return Result{Unanswered: dial(given.Upstreams)}, nil
	case "ask":
		return Result{}, ask(given.URL, given.Wait)
	}
	return Result{}, fmt.Errorf("there is no order %q", given.Do)
}

// apply lets Caddy see either all of the old or all of the new: data that is new stands beside the
// old until Caddy has taken the configuration that names it.
func apply(given Order) (Result, error) {
	if err := adoptIncoming(); err != nil {
		return Result{}, err
	}
	done, err := load(given)
	if err != nil || given.Wait == 0 {
		// Nothing is removed: which configuration serves now is not for sure what is in place.
		return done, err
	}
	return done, removeUnnamed()
}

func load(given Order) (Result, error) {
	for _, tree := range given.Trees {
		if err := place(tree.Path, tree.write); err != nil {
			return Result{}, err
		}
	}
	for _, private := range given.Private {
		write := func(folder string) error { return private.write(folder, given.Owner) }
		if err := place(private.Path, write); err != nil {
			return Result{}, err
		}
	}
	// All but the last step, so that a full disk shows before Caddy changes over.
	next := filepath.Join(exchange, "Caddyfile")
	if err := writeFile(next, []byte(given.Caddyfile), 0o644); err != nil {
		return Result{}, err
	}
	if given.Wait == 0 {
		return Result{}, putInPlace(next)
	}
	var done Result
	caddy, err := answering(given.Wait)
	if err != nil {
		return done, err
	}
	if done.HeapBefore, err = caddy.heap(); err != nil {
		return done, err
	}
	if given.HeapLimit > 0 && done.HeapBefore > given.HeapLimit {
		return done, problem{"memory", fmt.Sprintf("%d bytes of %d", done.HeapBefore, given.HeapLimit)}
	}
	if err := caddy.load(given.Caddyfile); err != nil {
		return done, err
	}
	// Only now: Caddy reads it when it starts, and must never find there what it refuses.
	if err := putInPlace(next); err != nil {
		return done, err
	}
	// It is delivered: that this could not be told is no failure.
	done.HeapAfter, _ = caddy.heap()
	return done, nil
}

func putInPlace(next string) error {
	if err := os.Rename(next, caddyfile); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(caddyfile))
}

// removeResults removes what earlier runs left for whoever has long read it.
func removeResults() error {
	found, err := filepath.Glob(exchange + "/result-*")
	if err != nil {
		return err
	}
	for _, path := range found {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// room returns the bytes that the disk with the sites' folders has left for this user.
func room() (uint64, error) {
	var disk syscall.Statfs_t
	err := syscall.Statfs(filepath.Dir(sites), &disk)
	return disk.Bavail * uint64(disk.Bsize), err
}
