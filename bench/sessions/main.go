// Command sessions holds DERP sessions through a relay with Tailscale's own
// client, in pairs that exchange numbered packets, and reports what it cost them
// to have whatever is in between reloaded or replaced: packets lost, sessions
// dropped, pauses.
//
// It prints "ready" when every client has received a packet from its partner,
// and goes on until standard input ends or SIGTERM or SIGINT comes. Then it
// writes its report, which is JSON; report.go tells what is in it. It exits 0
// with a report, whatever was dropped, and 2 without one: where it was called
// wrongly or never got ready.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"tailscale.com/derp"
)

type options struct {
	url      *url.URL
	connect  []string
	tls      *tls.Config
	pairs    int
	interval time.Duration
	size     int
	stagger  time.Duration
	report   *os.File
}

func main() {
	options, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sessions:", err)
		os.Exit(2)
	}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	report, err := hold(stop, options)
	if err != nil {
		fmt.Fprintln(os.Stderr, "sessions:", err)
		os.Exit(2)
	}
	encoder := json.NewEncoder(options.report)
	encoder.SetIndent("", "  ")
	if err := errors.Join(encoder.Encode(report), options.report.Close()); err != nil {
		fmt.Fprintln(os.Stderr, "sessions: writing the report:", err)
		os.Exit(1)
	}
}

func parse(arguments []string) (options, error) {
	var parsed options
	var address, ca, report string
	flags := flag.NewFlagSet("sessions", flag.ContinueOnError)
	flags.StringVar(&address, "url", "https://derp.localhost/derp", "the relay's `URL`")
	flags.Func("connect", "`ADDRESS:PORT` to connect to instead of what DNS says; more of them, separated"+
		" by commas or given again, are taken by the clients in turn", func(value string) error {
		for part := range strings.SplitSeq(value, ",") {
			if _, err := netip.ParseAddrPort(part); err != nil {
				return err
			}
			parsed.connect = append(parsed.connect, part)
		}
		return nil
	})
	flags.StringVar(&ca, "ca", "", "PEM `FILE` with the only roots to trust; otherwise the system's")
	flags.IntVar(&parsed.pairs, "pairs", 25, "pairs of sessions")
	flags.DurationVar(&parsed.interval, "interval", 20*time.Millisecond, "time between two packets of a client")
	flags.IntVar(&parsed.size, "size", 64, "bytes of a packet")
	flags.DurationVar(&parsed.stagger, "stagger", 0, "time over which the sessions are opened")
	flags.StringVar(&report, "report", "", "`FILE` for the report; otherwise standard output")
	if err := flags.Parse(arguments); err != nil {
		return parsed, err
	}
	switch {
	case flags.NArg() > 0:
		return parsed, fmt.Errorf("%q: it takes flags alone", flags.Arg(0))
	case parsed.pairs < 1:
		return parsed, fmt.Errorf("-pairs %d: at least 1", parsed.pairs)
	case parsed.interval <= 0:
		return parsed, fmt.Errorf("-interval %v: more than 0", parsed.interval)
	case parsed.stagger < 0:
		return parsed, fmt.Errorf("-stagger %v: not less than 0", parsed.stagger)
	case parsed.size < headerSize || parsed.size > derp.MaxPacketSize:
		return parsed, fmt.Errorf("-size %d: from %d to %d", parsed.size, headerSize, derp.MaxPacketSize)
	}
	var err error
	parsed.url, err = url.Parse(address)
	if err != nil {
		return parsed, fmt.Errorf("-url: %w", err)
	}
	if parsed.url.Hostname() == "" || (parsed.url.Scheme != "https" && parsed.url.Scheme != "http") {
		return parsed, fmt.Errorf("-url %s: https://HOST/derp, or http:", address)
	}
	if ca != "" {
		if parsed.tls, err = trusting(ca, parsed.url.Hostname()); err != nil {
			return parsed, fmt.Errorf("-ca: %w", err)
		}
	}
	parsed.report = os.Stdout
	if report != "" {
		if parsed.report, err = os.Create(report); err != nil {
			return parsed, fmt.Errorf("-report: %w", err)
		}
	}
	return parsed, nil
}

// trusting returns the configuration of a client that trusts the roots in the
// PEM file alone.
func trusting(ca, host string) (*tls.Config, error) {
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate in it", ca)
	}
	return &tls.Config{
		RootCAs: roots,
		// tailscale.com/net/tlsdial trusts the system's roots and Let's Encrypt's
		// besides RootCAs, so it is not enough that it is content.
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			options := x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: x509.NewCertPool()}
			var leaf *x509.Certificate
			for _, der := range raw {
				certificate, err := x509.ParseCertificate(der)
				if err != nil {
					return err
				}
				if leaf == nil {
					leaf = certificate
				} else {
					options.Intermediates.AddCert(certificate)
				}
			}
			if leaf == nil {
				return errors.New("the server sent no certificate")
			}
			_, err := leaf.Verify(options)
			return err
		},
	}, nil
}
