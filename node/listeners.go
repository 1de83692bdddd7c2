package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"time"

	"osteon/dicomsvc/dicomweb"
	"osteon/dicomsvc/refusal"
	"osteon/dicomsvc/scp"
)

const (
	httpHeaderTimeout  = 10 * time.Second
	httpIdleTimeout    = 120 * time.Second
	httpHeaderBytesMax = 64 << 10
	adminSocket        = "admin.sock"
)

// listeners are the node's front doors, opened by Open and served by Serve.
type listeners struct {
	dimse net.Listener
	http  net.Listener
	admin net.Listener

	scp       *scp.Server
	dicomweb  *dicomweb.Server
	web       *http.Server
	adminHTTP *http.Server

	refusals *refusal.Log // what they refused, for `osteon ae log`

	dimseEnded chan struct{} // closed when the DIMSE server has drained
}

func (n *Node) openListeners() (err error) {
	s := &n.servers
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	s.refusals = refusal.NewLog(refusal.Config{Now: n.env.Now, Log: n.env.Log})
	if n.cfg.DIMSE.Listen != Off {
		if s.dimse, err = n.env.Listen("tcp", n.cfg.DIMSE.Listen); err != nil {
			return fmt.Errorf("dimse.listen: %w", err)
		}
		if s.scp, err = scp.New(n.scpConfig()); err != nil {
			return err
		}
	}
	if n.cfg.HTTP.Listen != Off {
		if s.http, err = n.listenHTTP(); err != nil {
			return fmt.Errorf("http.listen: %w", err)
		}
		if s.web, err = n.webServer(); err != nil {
			return err
		}
	}
	s.admin, err = n.listenAdmin()
	if err != nil {
		return err
	}
	s.adminHTTP = &http.Server{Handler: n.adminHandler(), ReadHeaderTimeout: httpHeaderTimeout, IdleTimeout: httpIdleTimeout}
	return nil
}

func (n *Node) scpConfig() scp.Config {
	return scp.Config{
		Short:   shortOfDescriptors,
		Archive: n.archive, AETitle: n.cfg.DIMSE.AET, StrictCalled: n.cfg.strictCalled(),
		AssociationsMax: n.cfg.DIMSE.AssociationsMax, PerAEMax: n.cfg.DIMSE.AssociationsPerAE,
		PerHostMax: n.cfg.DIMSE.AssociationsPerHost, OperationsMax: n.cfg.DIMSE.OperationsMax, Refusals: n.servers.refusals, Grace: drainTimeout, Relational: n.cfg.DIMSE.Relational,
		Peer: n.registry.peer, Promiscuous: n.registry.promiscuous, Settled: n.caughtUp.Load, LaxTitles: n.cfg.DIMSE.LaxTitles,
		Destination: n.registry.addresses,
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return n.env.Dial(ctx, "tcp", address)
		},
		Now: n.env.Now, Log: n.env.Log,
	}
}

func (n *Node) listenHTTP() (net.Listener, error) {
	l, err := n.env.Listen("tcp", n.cfg.HTTP.Listen)
	if err != nil {
		return nil, err
	}
	l = newCapped(l, n.cfg.HTTP, n.servers.refusals)
	if n.cfg.HTTP.TLSCert == "" {
		return l, nil
	}
	cert, err := tls.LoadX509KeyPair(n.cfg.HTTP.TLSCert, n.cfg.HTTP.TLSKey)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return tls.NewListener(l, &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
	}), nil
}

func (n *Node) webServer() (*http.Server, error) {
	web, err := dicomweb.New(dicomweb.Config{
		Archive: n.archive, PublicRoot: n.cfg.HTTP.PublicRoot, Registered: n.registry.tokens, Authenticate: n.cfg.httpAuth(),
		Refusals: n.servers.refusals, Now: n.env.Now, Rand: n.env.Rand, Log: n.env.Log,
	})
	if err != nil {
		return nil, err
	}
	n.servers.dicomweb = web
	mux := http.NewServeMux()
	mux.Handle("/dicom-web/", web)
	n.healthRoutes(mux)
	return &http.Server{
		Handler: mux, ReadHeaderTimeout: httpHeaderTimeout, IdleTimeout: httpIdleTimeout,
		MaxHeaderBytes: httpHeaderBytesMax, ErrorLog: log.New(discard{}, "", 0),
	}, nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// healthRoutes answers what load balancers and monitors ask; none of it names a patient.
func (n *Node) healthRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := n.ring.Err(); err != nil {
			http.Error(w, "fenced: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := n.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", n.metricsHandler())
}

// debugRoutes belong on the admin socket only.
func debugRoutes(mux *http.ServeMux) {
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
}

// AdminSocket returns the path of the admin socket of the node in dir.
func AdminSocket(dir string) string { return filepath.Join(dir, adminSocket) }

func (n *Node) listenAdmin() (net.Listener, error) {
	l, err := n.env.Listen("unix", AdminSocket(n.cfg.Dir))
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	return l, nil
}

// listen opens a real listener. A unix socket that a dead process left is replaced, and only this user may speak to
// the new one.
func listen(network, address string) (net.Listener, error) {
	if network != "unix" {
		return net.Listen(network, address)
	}
	return listenUnix(address)
}

func listenUnix(path string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("%s: another process serves this directory", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// serve runs every open listener until shutdown; one that fails reports to failed.
func (s *listeners) serve(ctx context.Context, spawn func(func()), failed chan<- error) {
	report := func(name string, err error) {
		if err == nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
			return
		}
		select {
		case failed <- fmt.Errorf("%s listener: %w", name, err):
		default:
		}
	}
	s.dimseEnded = make(chan struct{})
	if s.dimse == nil {
		close(s.dimseEnded)
	} else {
		spawn(func() {
			defer close(s.dimseEnded)
			report("dimse", s.scp.Serve(ctx, s.dimse))
		})
	}
	if s.http != nil {
		spawn(func() { report("http", s.web.Serve(s.http)) })
	}
	spawn(func() { report("admin", s.adminHTTP.Serve(s.admin)) })
}

// shutdown lets running requests finish for at most patience. The DIMSE server drains by its context,
// within the grace that it was given, and shutdown waits for it.
func (s *listeners) shutdown(patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, server := range []*http.Server{s.web, s.adminHTTP} {
		if server == nil {
			continue
		}
		if err := server.Shutdown(ctx); err != nil {
			server.Close()
		}
	}
	<-s.dimseEnded
}

func (s *listeners) close() {
	for _, l := range []net.Listener{s.dimse, s.http, s.admin} {
		if l != nil {
			l.Close()
		}
	}
}

func (s *listeners) dimseAddress() string { return address(s.dimse) }
func (s *listeners) httpAddress() string  { return address(s.http) }

func address(l net.Listener) string {
	if l == nil {
		return Off
	}
	return l.Addr().String()
}
