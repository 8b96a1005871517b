package main

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"sync/atomic"
	"time"
)

const (
	dialTimeout = 3 * time.Second
	dialsAtOnce = 64
)

// dial returns why upstreams take no connection from here, which is where Caddy is, by their numbers.
func dial(upstreams []Upstream) map[int]string {
	reasons := make([]error, len(upstreams))
	var next atomic.Int64
	finished := make(chan struct{})
	workers := min(dialsAtOnce, len(upstreams))
	for range workers {
		go func() {
			for at := next.Add(1) - 1; at < int64(len(upstreams)); at = next.Add(1) - 1 {
				reasons[at] = upstreams[at].connect()
			}
			finished <- struct{}{}
		}()
	}
	for range workers {
		<-finished
	}
	unanswered := map[int]string{}
	for at, reason := range reasons {
		if reason != nil {
			unanswered[at] = reason.Error()
		}
	}
	return unanswered
}

func (u Upstream) connect() error {
	dialer := &net.Dialer{Timeout: dialTimeout}
	if u.TLS == nil {
		connection, err := dialer.Dial("tcp", u.Address)
		if err != nil {
			return err
		}
		return connection.Close()
	}
	wanted := &tls.Config{ServerName: u.TLS.ServerName, InsecureSkipVerify: !u.TLS.Verify}
	if len(u.TLS.Trust) > 0 {
		wanted.RootCAs = x509.NewCertPool()
		for _, der := range u.TLS.Trust {
			trusted, err := x509.ParseCertificate(der)
			if err != nil {
				return err
			}
			wanted.RootCAs.AddCert(trusted)
		}
	}
	connection, err := tls.DialWithDialer(dialer, "tcp", u.Address, wanted)
	if err != nil {
		return err
	}
	return connection.Close()
}
