package main

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"
)

// report is what came of it. Times are in seconds; "at" and "since" count from
// the moment it was ready, and are negative before.
type report struct {
	Sessions int       `json:"sessions"`
	Started  time.Time `json:"started"`
	// Seconds is from ready to the last packet sent.
	Seconds  float64 `json:"seconds"`
	Sent     uint64  `json:"sent"`
	Received uint64  `json:"received"`
	// Lost were sent and never received, though neither end's session dropped
	// meanwhile. Besides a fault, a stall makes them: derper keeps 32 packets for
	// a client whose connection takes none, and drops the oldest. LongestPause
	// shows it.
	Lost uint64 `json:"lost"`
	// LostInOutages were never received because the session of an end dropped:
	// the receiver's between the packets before and after, or the sender's with
	// them under way. derper drops packets for clients that are not connected.
	LostInOutages uint64 `json:"lost_in_outages"`
	// Unsent are ticks at which the sender had no session.
	Unsent uint64 `json:"unsent"`
	// Late are ticks left out because the sender was held up, by a connection
	// that took nothing or by a busy machine.
	Late         uint64    `json:"late"`
	Duplicated   uint64    `json:"duplicated"`
	Reordered    uint64    `json:"reordered"`
	SessionDrops []dropped `json:"session_drops"`
	Reconnects   int       `json:"reconnects"`
	Outages      []pauses  `json:"outages"`
	// LongestPause is the longest time that a client waited for a packet.
	LongestPause float64  `json:"longest_pause"`
	Latency      *latency `json:"latency"` // null if no packet was received
	ServerKeys   []string `json:"server_keys"`
	// ConnectErrors are those of attempts to connect, by text.
	ConnectErrors map[string]int `json:"connect_errors"`
	// Notices are counts of what else came from the server.
	Notices    map[string]int `json:"notices"`
	Directions []direction    `json:"directions"`
}

type dropped struct {
	Client  int     `json:"client"`
	Connect string  `json:"connect"` // the address; empty if DNS tells
	At      float64 `json:"at"`
	Error   string  `json:"error"`
}

// pauses is the time from the last packet that a client received before its
// session dropped to the first one after. Drops is more than 1 if the sessions
// that followed dropped before a packet came; Ended is false if none came at
// all, and Seconds then goes to the end.
type pauses struct {
	Client  int     `json:"client"`
	Since   float64 `json:"since"`
	Seconds float64 `json:"seconds"`
	Drops   int     `json:"drops"`
	Ended   bool    `json:"ended"`
}

type latency struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// direction is what one client sent to its partner.
type direction struct {
	Sender        int    `json:"sender"`
	Receiver      int    `json:"receiver"`
	Sent          uint64 `json:"sent"`
	Received      uint64 `json:"received"`
	Lost          uint64 `json:"lost"`
	LostInOutages uint64 `json:"lost_in_outages"`
	Duplicated    uint64 `json:"duplicated"`
	Reordered     uint64 `json:"reordered"`
}

// summarise puts together what the clients noted, while their sessions still last.
func summarise(run *run, clients []*client, started time.Time, readyAt, stoppedAt time.Duration) report {
	for _, client := range clients {
		client.mu.Lock()
		defer client.mu.Unlock()
	}
	run.mu.Lock()
	defer run.mu.Unlock()
	made := report{
		Sessions:      len(clients),
		Started:       started,
		Seconds:       (stoppedAt - readyAt).Seconds(),
		SessionDrops:  []dropped{},
		Outages:       []pauses{},
		ServerKeys:    slices.Sorted(maps.Keys(run.serverKeys)),
		ConnectErrors: maps.Clone(run.connectErrors),
		Notices:       maps.Clone(run.notices),
	}
	var longest time.Duration
	var latencies []float32
	for _, client := range clients {
		one := received(client)
		made.Directions = append(made.Directions, one)
		made.Sent += one.Sent
		made.Received += one.Received
		made.Lost += one.Lost
		made.LostInOutages += one.LostInOutages
		made.Duplicated += one.Duplicated
		made.Reordered += one.Reordered
		made.Unsent += client.unsent
		made.Late += client.late
		made.Reconnects += client.reconnects
		for _, drop := range client.drops {
			made.SessionDrops = append(made.SessionDrops,
				dropped{client.number, client.address, (drop.at - readyAt).Seconds(), drop.err})
		}
		for _, outage := range client.outages {
			if !outage.ended {
				outage.to = max(stoppedAt, outage.from)
			}
			made.Outages = append(made.Outages, pauses{
				client.number, (outage.from - readyAt).Seconds(), (outage.to - outage.from).Seconds(),
				outage.drops, outage.ended,
			})
		}
		// A pause that lasts still is one.
		longest = max(longest, client.longestPause, stoppedAt-client.last)
		latencies = append(latencies, client.latencies...)
	}
	slices.SortStableFunc(made.SessionDrops, func(a, b dropped) int { return cmp.Compare(a.At, b.At) })
	slices.SortStableFunc(made.Outages, func(a, b pauses) int { return cmp.Compare(a.Since, b.Since) })
	made.LongestPause = longest.Seconds()
	if len(latencies) > 0 {
		slices.Sort(latencies)
		made.Latency = &latency{
			percentile(latencies, 50), percentile(latencies, 90), percentile(latencies, 99), percentile(latencies, 100),
		}
	}
	return made
}

// received tells what came of the packets that the client's partner sent to it.
func received(client *client) direction {
	sender := client.partner
	one := direction{
		Sender:     sender.number,
		Receiver:   client.number,
		Sent:       sender.sent,
		Received:   client.received,
		Duplicated: client.duplicated,
		Reordered:  client.reordered,
	}
	// What came after a packet tells whether it was lost in an outage: packets of
	// a session arrive in the order in which they were sent, so one that is
	// followed by none of its own session was lost with that session.
	note := func(number uint64, after gap) {
		if after.interrupted || sender.sessionOf(number) != after.session {
			one.LostInOutages++
		} else {
			one.Lost++
		}
	}
	for number, after := range client.missing {
		note(number, *after)
	}
	// After the last one comes nothing: the sessions are those of the end.
	end := gap{client.lastSession != len(client.drops), len(sender.drops)}
	for number := client.highest + 1; number <= sender.sent; number++ {
		note(number, end)
	}
	return one
}

// percentile returns the nearest rank of sorted values.
func percentile(sorted []float32, percent float64) float64 {
	rank := int(math.Ceil(percent / 100 * float64(len(sorted))))
	return float64(sorted[max(rank, 1)-1])
}
