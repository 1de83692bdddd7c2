package ring

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"runtime"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/go-hclog"
)

// pebbleLogger passes on what Pebble has to say. Pebble expects Fatalf not to return.
type pebbleLogger struct {
	log  *slog.Logger
	fail func(error)
}

func (p pebbleLogger) Infof(format string, args ...any) {}

func (p pebbleLogger) Errorf(format string, args ...any) {
	p.log.Warn("raft log database complained", "text", fmt.Sprintf(format, args...))
}

func (p pebbleLogger) Fatalf(format string, args ...any) {
	p.fail(fmt.Errorf("%w: %s", ErrDisk, fmt.Sprintf(format, args...)))
	runtime.Goexit()
}

// listener reports slow disks and background faults; the rest of Pebble's events are noise here.
func (p pebbleLogger) listener() *pebble.EventListener {
	return &pebble.EventListener{
		BackgroundError: func(err error) { p.log.Warn("raft log database failed in the background", "err", err) },
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			p.fail(fmt.Errorf("%w: raft log database: %w", ErrDamaged, info.Details))
			time.Sleep(damagePause)
		},
		DiskSlow: func(info pebble.DiskSlowInfo) {
			p.log.Warn("raft disk was slow", "op", info.OpType.String(), "ms", info.Duration.Milliseconds())
		},
		WriteStallBegin: func(info pebble.WriteStallBeginInfo) {
			p.log.Warn("raft log database stalled writes", "reason", info.Reason)
		},
	}
}

// libraryLog is hashicorp/raft's log as slog, one step quieter: the library calls every
// unreachable peer an error and every election a matter of interest.
type libraryLog struct {
	log *slog.Logger
}

var _ hclog.Logger = libraryLog{}

// level maps the library's levels. Debug and below become lower than slog.LevelDebug.
func level(l hclog.Level) slog.Level {
	switch {
	case l >= hclog.Error:
		return slog.LevelWarn
	case l >= hclog.Info:
		return slog.LevelDebug
	}
	return slog.LevelDebug - 4
}

func (l libraryLog) Log(at hclog.Level, msg string, args ...any) {
	to := level(at)
	if !l.log.Enabled(context.Background(), to) {
		return
	}
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			args[i] = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
	}
	l.log.Log(context.Background(), to, msg, args...)
}

func (l libraryLog) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l libraryLog) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l libraryLog) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l libraryLog) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l libraryLog) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l libraryLog) IsTrace() bool { return false }
func (l libraryLog) IsDebug() bool { return l.enabled(hclog.Debug) }
func (l libraryLog) IsInfo() bool  { return l.enabled(hclog.Info) }
func (l libraryLog) IsWarn() bool  { return l.enabled(hclog.Warn) }
func (l libraryLog) IsError() bool { return l.enabled(hclog.Error) }

func (l libraryLog) enabled(at hclog.Level) bool {
	return l.log.Enabled(context.Background(), level(at))
}

func (l libraryLog) ImpliedArgs() []any             { return nil }
func (l libraryLog) With(args ...any) hclog.Logger  { return libraryLog{l.log.With(args...)} }
func (l libraryLog) Name() string                   { return "raft" }
func (l libraryLog) Named(string) hclog.Logger      { return l }
func (l libraryLog) ResetNamed(string) hclog.Logger { return l }
func (l libraryLog) SetLevel(hclog.Level)           {}
func (l libraryLog) GetLevel() hclog.Level          { return hclog.Debug }
func (l libraryLog) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.log.Handler(), slog.LevelDebug)
}
func (l libraryLog) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return io.Discard }
