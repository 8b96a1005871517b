package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"regexp"
	"sync"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

const (
	// headerSize is what a packet begins with, as big-endian integers: the
	// sender's number (4 bytes), the number of the sender's session (4), the
	// packet's own (8, from 1 on; 0 before the measurement) and the time it was
	// sent (8, nanoseconds since the program began).
	headerSize = 24

	connectWithin  = 10 * time.Second // as derphttp's own limit
	firstBackoff   = 100 * time.Millisecond
	longestBackoff = time.Second
)

var errSpent = errors.New("this client's only connection has ended")

// client is one end of a pair. It has one session after the other, each of a
// derphttp.Client of its own.
type client struct {
	run     *run
	number  int
	address string // to connect to; empty if DNS tells
	private key.NodePrivate
	public  key.NodePublic
	partner *client
	heard   chan struct{} // closed when a packet from the partner came

	mu         sync.Mutex
	session    *session // nil while there is none
	drops      []drop   // their count is the number of the session that is, or will be
	reconnects int

	// What it sent.
	sent   uint64
	unsent uint64 // ticks at which there was no session
	late   uint64 // ticks that passed while the tick before was at work
	firsts []first

	// What it received from its partner.
	received   uint64
	duplicated uint64
	reordered  uint64
	highest    uint64
	missing    map[uint64]*gap
	latencies  []float32 // seconds, one for each packet: four bytes, so that hours of them can be kept

	last         time.Duration // when the last packet came, numbered or not
	lastSession  int           // in which of its sessions
	longestPause time.Duration
	outages      []outage
}

// session is one connection to the relay. It ends with the first error.
type session struct {
	derp *derphttp.Client
	mu   sync.Mutex
	err  error
}

// drop is the end of a session.
type drop struct {
	at  time.Duration
	err string
}

// first is the number of the first packet that was sent in a session.
type first struct {
	session int
	number  uint64
}

// gap is a run of numbers that was skipped. interrupted says that the receiver's
// session dropped between the packet before and the one after it, of which
// session is the sender's session.
type gap struct {
	interrupted bool
	session     int
}

// outage is the time from the last packet before a drop to the first one after it.
type outage struct {
	from, to time.Duration
	drops    int
	ended    bool
}

func newClient(run *run, number int) *client {
	private := key.NewNode()
	client := &client{
		run:     run,
		number:  number,
		private: private,
		public:  private.Public(),
		heard:   make(chan struct{}),
		missing: map[uint64]*gap{},
	}
	if len(run.connect) > 0 {
		client.address = run.connect[number%len(run.connect)]
	}
	return client
}

func (c *client) current() *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session
}

func (c *client) droppedSessions() []drop {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.drops
}

func (c *client) beginMeasuring(at time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = at
}

// hold keeps a session, one after the other, until ctx is done.
func (c *client) hold(ctx context.Context) {
	var backoff time.Duration
	for pause(ctx, backoff) {
		session, err := c.connect(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			c.run.noteConnectError(err)
		} else if c.receive(ctx, session) {
			backoff = 0
			continue
		}
		backoff = min(max(2*backoff, firstBackoff), longestBackoff)
	}
}

// connect opens a session: it is one when derper has let the client in.
func (c *client) connect(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, connectWithin)
	defer cancel()
	// What derphttp logs, it returns as well.
	opened, err := derphttp.NewClient(c.private, c.run.url.String(), logger.Discard, c.run.monitor)
	if err != nil {
		return nil, err
	}
	opened.TLSConfig = c.run.tls
	spent := false
	opened.SetURLDialer(func(ctx context.Context, network, address string) (net.Conn, error) {
		// derphttp's client connects anew by itself, and the drop would not be seen.
		if spent {
			return nil, errSpent
		}
		spent = true
		if c.address != "" {
			address = c.address
		}
		var dialer net.Dialer
		return dialer.DialContext(ctx, network, address)
	})
	defer context.AfterFunc(ctx, func() { opened.Close() })()
	if err := opened.Connect(ctx); err != nil {
		opened.Close()
		return nil, err
	}
	// derp/derpserver/derpserver.go, accept: this comes when the client is registered.
	message, err := opened.Recv()
	if err == nil {
		if info, ok := message.(derp.ServerInfoMessage); !ok {
			err = fmt.Errorf("the server began with %T", message)
		} else if info.TokenBucketBytesPerSecond > 0 {
			c.run.notice("the server lets a client send %d bytes a second; derphttp drops what is more",
				info.TokenBucketBytesPerSecond)
		}
	}
	if err != nil {
		opened.Close()
		return nil, fmt.Errorf("waiting for the server's first message: %w", err)
	}
	c.run.noteServerKey(opened.ServerPublicKey())

	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = &session{derp: opened}
	if len(c.drops) > 0 {
		c.reconnects++
	}
	return c.session, nil
}

// fail ends the session because of err, unless it has ended.
func (s *session) fail(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.mu.Unlock()
	s.derp.Close()
}

// receive takes what comes until the session drops or ctx is done. It reports
// whether a packet came.
func (c *client) receive(ctx context.Context, session *session) (some bool) {
	defer context.AfterFunc(ctx, func() { session.derp.Close() })()
	for {
		message, err := session.derp.Recv()
		if err != nil {
			session.fail(err)
			break
		}
		switch message := message.(type) {
		case derp.ReceivedPacket:
			if message.Source != c.partner.public || len(message.Data) != c.run.size {
				c.run.notice("a packet that the partner did not send")
				continue
			}
			some = true
			c.take(message.Data)
		case derp.KeepAliveMessage:
		case derp.PeerGoneMessage:
			if message.Reason == derp.PeerGoneReasonNotHere {
				c.run.notice("packet for a client that is not connected")
			} else {
				c.run.notice("partner gone")
			}
		default:
			c.run.notice("%T: %v", message, message)
		}
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = nil
	if ctx.Err() != nil {
		return some
	}
	c.drops = append(c.drops, drop{c.run.now(), session.err.Error()})
	if count := len(c.outages); count > 0 && !c.outages[count-1].ended {
		c.outages[count-1].drops++
	} else {
		c.outages = append(c.outages, outage{from: c.last, drops: 1})
	}
	return some
}

// take notes a packet from the partner.
func (c *client) take(packet []byte) {
	session := int(binary.BigEndian.Uint32(packet[4:]))
	number := binary.BigEndian.Uint64(packet[8:])
	sentAt := time.Duration(binary.BigEndian.Uint64(packet[16:]))

	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.run.now()
	select {
	case <-c.heard:
	default:
		close(c.heard)
	}
	interrupted := c.lastSession != len(c.drops)
	if c.run.measuring.Load() {
		c.longestPause = max(c.longestPause, now-c.last)
	}
	c.last, c.lastSession = now, len(c.drops)
	if count := len(c.outages); count > 0 && !c.outages[count-1].ended {
		c.outages[count-1].to, c.outages[count-1].ended = now, true
	}
	if number == 0 {
		return
	}
	switch {
	case number > c.highest:
		if number > c.highest+1 {
			skipped := &gap{interrupted, session}
			for one := c.highest + 1; one < number; one++ {
				c.missing[one] = skipped
			}
		}
		c.highest = number
	case c.missing[number] != nil:
		delete(c.missing, number)
		c.reordered++
	default:
		c.duplicated++
		return
	}
	c.received++
	c.latencies = append(c.latencies, float32((now - sentAt).Seconds()))
}

// send sends a packet at each tick, whatever comes back, until ctx is done.
func (c *client) send(ctx context.Context, tick time.Time) {
	for {
		// Ticks that are over are left out: to make up for them all at once would
		// be more than derper's queue of 32 packets for a client may hold.
		if over := time.Since(tick) / c.run.interval; over > 0 {
			tick = tick.Add(over * c.run.interval)
			if c.run.measuring.Load() {
				c.mu.Lock()
				c.late += uint64(over)
				c.mu.Unlock()
			}
		}
		if !pause(ctx, time.Until(tick)) {
			return
		}
		c.sendOne()
		tick = tick.Add(c.run.interval)
	}
}

func (c *client) sendOne() {
	packet := make([]byte, c.run.size)
	c.mu.Lock()
	session := c.session
	if c.run.measuring.Load() {
		if session == nil {
			c.unsent++
		} else {
			c.sent++
			binary.BigEndian.PutUint64(packet[8:], c.sent)
			if count := len(c.firsts); count == 0 || c.firsts[count-1].session != len(c.drops) {
				c.firsts = append(c.firsts, first{len(c.drops), c.sent})
			}
		}
	}
	binary.BigEndian.PutUint32(packet, uint32(c.number))
	binary.BigEndian.PutUint32(packet[4:], uint32(len(c.drops)))
	c.mu.Unlock()
	if session == nil {
		return
	}
	binary.BigEndian.PutUint64(packet[16:], uint64(c.run.now()))
	if err := session.derp.Send(c.partner.public, packet); err != nil {
		session.fail(err)
	}
}

// sessionOf returns the number of the session in which a packet was sent.
func (c *client) sessionOf(number uint64) (session int) {
	for _, first := range c.firsts {
		if first.number > number {
			break
		}
		session = first.session
	}
	return session
}

var localAddress = regexp.MustCompile(`(read|write) tcp \S+->`)

// withoutLocalAddress returns an error's text without the port that differs each time.
func withoutLocalAddress(err error) string {
	return localAddress.ReplaceAllString(err.Error(), "$1 tcp ")
}
