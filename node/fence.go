package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"osteon/raft/ring"
)

// reopenPause keeps a node that finds the same damage again and again from doing nothing else.
const reopenPause = time.Second

// Run opens the node that cfg.Dir holds and serves it until ctx ends. A node that has to begin anew with a part of its
// directory is opened again; any other end is Run's.
func Run(ctx context.Context, cfg Config, env Env) error {
	for {
		n, err := Open(cfg, env)
		if err != nil {
			return err
		}
		if err = n.Serve(ctx); !errors.Is(err, ErrReopen) || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(reopenPause):
		}
	}
}

// foundBroken hears of damage from inside the databases; the first word counts.
func (c *core) foundBroken(part string, cause error) {
	select {
	case c.broken <- &brokenError{part: part, cause: cause}:
	default:
	}
}

// fileDamaged hears from the encrypting file system.
func (c *core) fileDamaged(name string, cause error) {
	for _, part := range []string{"catalog", "local"} {
		if strings.HasPrefix(name, c.path(part)+"/") {
			c.foundBroken(part, cause)
		}
	}
}

// mend returns ErrReopen when damage of a part of the directory may be why err came about, else err.
func (c *core) mend(err error) error {
	select {
	case damage := <-c.broken:
		return errors.Join(c.reopenWithout(damage), err)
	default:
		return err
	}
}

// diskFailed hears of an error of the disk after which a database writes nothing more: the node ends.
func (c *core) diskFailed(cause error) {
	select {
	case c.broken <- fmt.Errorf("this node fenced itself: %w: look at the disk, then start the node again", cause):
	default:
	}
}

// brokenError is damage found in a part of the directory that can be made anew.
type brokenError struct {
	part  string
	cause error
}

func (e *brokenError) Error() string { return fmt.Sprintf("%s is damaged: %v", e.part, e.cause) }
func (e *brokenError) Unwrap() error { return e.cause }

// ended waits for what makes this node end by itself and returns why; nil when ctx ends. With ErrReopen the node is opened
// again and puts itself in order then.
func (n *Node) ended(ctx context.Context, failed <-chan error, standing <-chan error) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	case err := <-standing:
		if errors.Is(err, ErrRolledBack) {
			return fmt.Errorf("%w: %w", ErrReopen, err)
		}
		return fmt.Errorf("this node fenced itself: %w", err)
	case err := <-n.broken:
		return n.reopenWithout(err)
	case <-n.ring.Failed():
		return n.ringFailed()
	}
}

// reopenWithout notes durably that the damaged part is set aside at the next start.
func (c *core) reopenWithout(damage error) error {
	var broken *brokenError
	if !errors.As(damage, &broken) {
		return damage
	}
	c.env.Log.Error("a part of the directory is damaged; the node starts again without it", "part", broken.part, "err", broken.cause)
	err := c.changeIdentity(func(id *identity) {
		if !slices.Contains(id.Damaged, broken.part) {
			id.Damaged = append(id.Damaged, broken.part)
		}
	})
	if err != nil {
		return errors.Join(damage, err)
	}
	return fmt.Errorf("%w: %w", ErrReopen, damage)
}

// ringFailed decides what follows when Raft had to stop. Damage of its log or of the catalog can be mended by starting again; what
// this release does not understand, and a disk that fails, cannot.
func (n *Node) ringFailed() error {
	err := n.ring.Err()
	select {
	case damage := <-n.broken: // the cause, when the state machine stopped over it
		return n.reopenWithout(damage)
	default:
	}
	if fault := n.cat.Fault(); fault != nil {
		err = fmt.Errorf("%w: %w", err, fault)
	}
	if errors.Is(err, ring.ErrShortLog) || errors.Is(err, ring.ErrDamaged) {
		if derr := n.distrust(err); derr != nil {
			return fmt.Errorf("this node fenced itself: %w", derr)
		}
		return fmt.Errorf("%w: %w", ErrReopen, err)
	}
	return fmt.Errorf("this node fenced itself: %w", err)
}
