package node

import (
	"fmt"
	"io"
	"log/slog"
)

// severity reads the name of a log level.
func severity(name string) (slog.Level, error) {
	switch name {
	case "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	default:
		return 0, fmt.Errorf("%q is none of debug, info, warn, error", name)
	}
}

// NewLog returns the node's logger: JSON lines to w from the configured level on.
func NewLog(w io.Writer, cfg LogConfig) (*slog.Logger, error) {
	level, err := severity(cfg.Level)
	if err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})), nil
}
