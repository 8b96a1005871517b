// Command http3 GETs a URL over HTTP/3 and nothing else. It prints what came as
// "curl --include" does, whatever the status, follows no redirect, and exits 1
// with the reason if no whole answer came within 30 seconds.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

func main() {
	ca := flag.String("ca", "", "PEM `FILE` with the only roots to trust; otherwise the system's")
	connect := flag.String("connect", "", "`ADDRESS:PORT` to connect to instead of what DNS says")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: http3 [-ca FILE] [-connect ADDRESS:PORT] URL")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := get(flag.Arg(0), *ca, *connect); err != nil {
		fmt.Fprintln(os.Stderr, "http3:", err)
		os.Exit(1)
	}
}

func get(url, ca, connect string) error {
	transport := &http3.Transport{TLSClientConfig: &tls.Config{}}
	defer transport.Close()
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return err
		}
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s has no certificate in it", ca)
		}
	}
	if connect != "" {
		if _, err := netip.ParseAddrPort(connect); err != nil {
			return fmt.Errorf("-connect: %w", err)
		}
		transport.Dial = func(
			ctx context.Context, _ string, tlsConfig *tls.Config, config *quic.Config,
		) (*quic.Conn, error) {
			return quic.DialAddrEarly(ctx, connect, tlsConfig, config)
		}
	}
	client := http.Client{
		Transport:     transport,
		Timeout:       30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	fmt.Printf("%s %s\r\n", response.Proto, response.Status)
	if err := response.Header.Write(os.Stdout); err != nil {
		return err
	}
	fmt.Print("\r\n")
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}
