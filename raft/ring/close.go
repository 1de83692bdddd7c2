package ring

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// begin counts a request that waits for the library, until r.work.Done. It fails with ErrClosed or the failure.
func (r *Ring) begin() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failure != nil {
		return r.failure
	}
	if r.closing {
		return ErrClosed
	}
	r.work.Add(1)
	return nil
}

// Close hands over leadership if it can, lets requests under way finish, and stops this node's part in the ring. It waits for all
// goroutines and closes all files, or returns ctx's error and leaves them to end by themselves. The state
// machine may be closed after it. Further calls wait for the first.
func (r *Ring) Close(ctx context.Context) error {
	r.mu.Lock()
	if r.closing {
		r.mu.Unlock()
		<-r.closed
		return r.closeErr
	}
	failed := r.failure != nil
	r.mu.Unlock()
	if !failed && r.IsLeader() && r.otherVoter() {
		if err := r.Transfer(ctx); err != nil {
			r.log.Debug("leadership not handed over", "err", err)
		}
	}
	r.mu.Lock()
	if r.closing {
		r.mu.Unlock()
		<-r.closed
		return r.closeErr
	}
	r.closing = true
	r.mu.Unlock()
	r.closeErr = r.release(ctx)
	close(r.closed)
	return r.closeErr
}

// otherVoter reports whether somebody else can lead.
func (r *Ring) otherVoter() bool {
	for _, s := range r.Servers() {
		if s.Voter && s.Node != r.cfg.Self {
			return true
		}
	}
	return false
}

// stopLibrary starts the shutdown of the library and returns its future, the same one at every call: only the first knows
// how to wait.
func (r *Ring) stopLibrary() raft.Future {
	r.stopOnce.Do(func() { r.stopping = r.raft.Shutdown() })
	return r.stopping
}

// release stops and closes whatever was started.
func (r *Ring) release(ctx context.Context) error {
	if r.Err() == nil {
		if err := waitFor(ctx, &r.work); err != nil { // after a failure some are never answered
			r.log.Warn("requests still under way at close", "err", err)
		}
	}
	_ = r.layer.Close() // never fails; ends every exchange under way
	done := make(chan error, 1)
	go func() { done <- r.releaseAll() }() // ends when everything has; a disk that hangs may hold it
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("close ring: %w", ctx.Err())
	}
}

func (r *Ring) releaseAll() error {
	r.cancel()
	if r.raft != nil {
		_ = r.stopLibrary().Error() // never fails
	}
	if r.trans != nil {
		_ = r.trans.Close() // never fails
	}
	r.wg.Wait()
	r.layer.handlers.Wait()
	if r.store == nil {
		return nil
	}
	if err := r.store.close(); err != nil {
		return fmt.Errorf("close ring: %w", err)
	}
	return nil
}

// waitFor waits for wg until ctx ends.
func waitFor(ctx context.Context, wg *sync.WaitGroup) error {
	done := make(chan struct{})
	go func() { // ends with wg
		wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Wipe removes everything the ring keeps below cfg.Dir: log, mark and snapshots. It is the first step of rejoining after
// ErrShortLog or ErrDamaged; the state machine must be wiped with it, for it may have applied what the log no longer shows. The
// mark goes last, so that a wipe cut short is found as a short log again. cfg needs FS, PlainFS and Dir.
func Wipe(cfg Config) error {
	for _, name := range []string{"log", "snapshots"} {
		if err := cfg.FS.RemoveAll(cfg.FS.PathJoin(cfg.Dir, name)); err != nil {
			return fmt.Errorf("wipe ring: %w", err)
		}
	}
	path := cfg.PlainFS.PathJoin(cfg.Dir, "mark")
	err := errors.Join(syncDir(cfg.PlainFS, cfg.Dir), cfg.PlainFS.RemoveAll(path), syncDir(cfg.PlainFS, cfg.Dir))
	if err != nil {
		return fmt.Errorf("wipe ring: %w", err)
	}
	return nil
}
