package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/net/netmon"
	"tailscale.com/types/key"
)

const (
	// readyWithin is how long clients have, once all of them are started, until
	// each has received a packet.
	readyWithin = 60 * time.Second
	// underWay is how long packets have to arrive after the last one was sent.
	underWay = time.Second
)

// run is what the clients share.
type run struct {
	options
	monitor *netmon.Monitor
	begin   time.Time
	// measuring is set when every client has received a packet. Packets sent
	// before have no number and are not counted, since derper drops what is for
	// a client that is not connected yet.
	measuring atomic.Bool

	mu            sync.Mutex
	connectErrors map[string]int
	notices       map[string]int
	serverKeys    map[string]bool
}

// now is the time since the program began, by the clock that nobody sets.
func (r *run) now() time.Duration {
	return time.Since(r.begin)
}

func (r *run) noteConnectError(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.connectErrors[withoutLocalAddress(err)]++
}

func (r *run) notice(format string, arguments ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notices[fmt.Sprintf(format, arguments...)]++
}

func (r *run) noteServerKey(public key.NodePublic) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.serverKeys[public.UntypedHexString()] = true
}

// hold opens the sessions, prints "ready", and exchanges packets until ctx is
// done. It returns an error if it did not get ready.
func hold(ctx context.Context, options options) (report, error) {
	run := &run{
		options: options,
		// derphttp insists on one; a static one watches nothing.
		monitor:       netmon.NewStatic(),
		begin:         time.Now(),
		connectErrors: map[string]int{},
		notices:       map[string]int{},
		serverKeys:    map[string]bool{},
	}
	clients := make([]*client, 2*options.pairs)
	for number := range clients {
		clients[number] = newClient(run, number)
	}
	for number, client := range clients {
		client.partner = clients[number^1]
	}

	// Not ctx: the sessions outlive it by the time that packets under way have.
	connected, disconnect := context.WithCancel(context.Background())
	sending, stopSending := context.WithCancel(ctx)
	defer stopSending()
	var senders, holders sync.WaitGroup
	defer holders.Wait()
	defer disconnect()
	for number, client := range clients {
		share := time.Duration(number) * options.stagger / time.Duration(len(clients))
		holders.Go(func() {
			if pause(connected, share) {
				client.hold(connected)
			}
		})
		// Spread over the interval, so that the clients do not all send at the same time.
		phase := time.Duration(number) * options.interval / time.Duration(len(clients))
		senders.Go(func() { client.send(sending, run.begin.Add(phase)) })
	}

	if err := run.ready(ctx, clients); err != nil {
		return report{}, err
	}
	readyAt, started := run.now(), time.Now()
	for _, client := range clients {
		client.beginMeasuring(readyAt)
	}
	run.measuring.Store(true)
	fmt.Println("ready")

	<-ctx.Done()
	senders.Wait()
	stoppedAt := run.now()
	time.Sleep(underWay)
	return summarise(run, clients, started, readyAt, stoppedAt), nil
}

// ready waits until every client has received a packet from its partner.
func (r *run) ready(ctx context.Context, clients []*client) error {
	deadline := time.After(r.stagger + readyWithin)
	for _, client := range clients {
		select {
		case <-client.heard:
		case <-ctx.Done():
			return fmt.Errorf("stopped before it was ready: %s", r.missing(clients))
		case <-deadline:
			return fmt.Errorf("not ready after %v: %s", r.stagger+readyWithin, r.missing(clients))
		}
	}
	return nil
}

// missing tells what the clients lack that have not received a packet.
func (r *run) missing(clients []*client) string {
	silent, unconnected := 0, 0
	for _, client := range clients {
		select {
		case <-client.heard:
		default:
			silent++
			if client.current() == nil {
				unconnected++
			}
		}
	}
	said := []string{fmt.Sprintf(
		"%d of %d clients have received nothing, %d of these have no session", silent, len(clients), unconnected,
	)}
	for _, client := range clients {
		for _, drop := range client.droppedSessions() {
			said = append(said, fmt.Sprintf("the session of client %d dropped: %s", client.number, drop.err))
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, text := range slices.Sorted(maps.Keys(r.connectErrors)) {
		said = append(said, fmt.Sprintf("%d × %s", r.connectErrors[text], text))
	}
	return strings.Join(said, "; ")
}

// pause waits, and reports whether it waited to the end.
func pause(ctx context.Context, wait time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(wait):
		return ctx.Err() == nil
	}
}
