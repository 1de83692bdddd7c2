// Command planted shows that the tests catch what they are there to catch: it runs, for each bug of
// osteon/erasure/plant, the tests that must go red on a build with that bug, and first the same tests without any
// bug, which must be green. It prints a line for each and at last how many were caught; its exit code is 0 only when
// all were.
//
//	go run ./cmd/planted [-v] [BUG ...]
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"time"

	"osteon/erasure/plant"
)

// timeout bounds building and testing with one bug; go test itself gives up sooner, because some bugs make a test
// wait for ever.
const timeout = 5 * time.Minute

// row says where a bug is caught.
type row struct {
	bug  plant.Bug
	pkg  string // below the module
	test string // a pattern of go test -run
}

func main() {
	verbose := flag.Bool("v", false, "print what the tests print")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	rows, err := chosen(flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	caught, err := run(ctx, rows, *verbose)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("planted bugs: caught %d/%d\n", caught, len(rows))
	if caught < len(rows) {
		os.Exit(1)
	}
}

// chosen returns the rows of the named bugs, all when none is named.
func chosen(names []string) ([]row, error) {
	if len(names) == 0 {
		return table, nil
	}
	var rows []row
	for _, name := range names {
		i := slices.IndexFunc(table, func(r row) bool { return string(r.bug) == name })
		if i < 0 {
			return nil, fmt.Errorf("planted: no bug is named %q", name)
		}
		rows = append(rows, table[i])
	}
	return rows, nil
}

// run returns how many bugs were caught. It is an error when the tests are red without a bug, or do not build.
func run(ctx context.Context, rows []row, verbose bool) (caught int, err error) {
	for pkg, tests := range byPackage(rows) {
		if red, out, err := test(ctx, "", pkg, tests, verbose); err != nil || red {
			return 0, fmt.Errorf("planted: %s without a bug: want green, got: %w\n%s", pkg, errors.Join(err), out)
		}
	}
	for _, r := range rows {
		began := time.Now()
		red, out, err := test(ctx, r.bug, r.pkg, r.test, verbose)
		if err != nil {
			return caught, fmt.Errorf("planted: %s: %w\n%s", r.bug, err, out)
		}
		verdict := "NOT CAUGHT by"
		if red {
			caught++
			verdict = "caught by " + reds(out) + " in"
		}
		fmt.Printf("%-26s %s %s (%.1fs)\n", r.bug, verdict, r.pkg, time.Since(began).Seconds())
	}
	return caught, nil
}

// byPackage joins the patterns of each package.
func byPackage(rows []row) map[string]string {
	patterns := map[string][]string{}
	for _, r := range rows {
		if !slices.Contains(patterns[r.pkg], r.test) {
			patterns[r.pkg] = append(patterns[r.pkg], r.test)
		}
	}
	joined := map[string]string{}
	for pkg, tests := range patterns {
		joined[pkg] = strings.Join(tests, "|")
	}
	return joined
}

// test runs a package's tests on a build with a bug and reports whether one went red.
func test(ctx context.Context, bug plant.Bug, pkg, pattern string, verbose bool) (red bool, out []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	args := []string{"test", "-count=1", "-tags", "planted", "-timeout", "40s", "-run", pattern,
		"-ldflags", "-X osteon/erasure/plant.bug=" + string(bug), "./" + pkg}
	cmd := exec.CommandContext(ctx, "go", args...)
	out, err = cmd.CombinedOutput()
	if verbose {
		fmt.Printf("%s", out)
	}
	var exit *exec.ExitError
	switch {
	case err == nil && bytes.Contains(out, []byte("no tests to run")):
		return false, out, fmt.Errorf("no test matches %s", pattern)
	case err == nil:
		return false, out, nil
	case errors.As(err, &exit) && !bytes.Contains(out, []byte("[build failed]")) && !bytes.Contains(out, []byte("[setup failed]")):
		return true, out, nil
	}
	return false, out, err
}

// reds names the tests that went red.
func reds(out []byte) string {
	var names []string
	for line := range strings.Lines(string(out)) {
		if rest, ok := strings.CutPrefix(line, "--- FAIL: "); ok {
			names = append(names, strings.Fields(rest)[0])
		}
	}
	if len(names) == 0 {
		return "a panic or a time-out"
	}
	return strings.Join(names, ", ")
}
