package main

import (
	"fmt"
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// behaviourCount is how many behaviours clients depend on there are; dicomsvc/BEHAVIOURS.md names them.
const behaviourCount = 71

// notBuiltYet stands in the table of behaviours instead of tests.
const notBuiltYet = "not built yet"

var (
	behavioursFile = filepath.Join("..", "..", "dicomsvc", "BEHAVIOURS.md")
	behaviourLine  = regexp.MustCompile(`^// Behaviours? (\d+(?:, \d+)*)\.$`)
	behaviourRow   = regexp.MustCompile(`^\| (\d+) \| (.*?) \| (.*?) \|$`)
)

// behaviourTests reads which tests say in a line of their comment that they hold a behaviour: its number -> package.Test.
func behaviourTests(t *testing.T) map[int][]string {
	out := map[int][]string{}
	for _, s := range readModule(t) {
		if !s.test {
			continue
		}
		held := map[*ast.Comment]bool{}
		for _, decl := range s.file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Doc == nil || !strings.HasPrefix(f.Name.Name, "Test") {
				continue
			}
			for _, c := range f.Doc.List {
				m := behaviourLine.FindStringSubmatch(c.Text)
				if m == nil {
					continue
				}
				held[c] = true
				for _, number := range strings.Split(m[1], ", ") {
					n, err := strconv.Atoi(number)
					if err != nil || n < 1 || n > behaviourCount {
						t.Errorf("%s: %s names behaviour %s; there are 1 to %d", s.path, f.Name.Name, number, behaviourCount)
					}
					if name := "`" + s.pkg + "." + f.Name.Name + "`"; !slices.Contains(out[n], name) {
						out[n] = append(out[n], name)
					}
				}
			}
		}
		for _, group := range s.file.Comments {
			for _, c := range group.List {
				if behaviourLine.MatchString(c.Text) && !held[c] {
					t.Errorf("%s: the line %q stands above no test", s.path, c.Text)
				}
			}
		}
	}
	for n := range out {
		slices.Sort(out[n])
	}
	return out
}

// Every numbered behaviour is held by at least one test that names it, or the table says that it is not built yet; and
// the table says no more and no less than the tests do.
func TestEveryBehaviourHasANamedTest(t *testing.T) {
	tests := behaviourTests(t)
	b, err := os.ReadFile(behavioursFile)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	next, stale := 1, false
	for i, line := range lines {
		m := behaviourRow.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		n, _ := strconv.Atoi(m[1])
		if n != next {
			t.Errorf("row %d follows row %d", n, next-1)
		}
		next = n + 1
		want := strings.Join(tests[n], ", ")
		switch {
		case want == "" && m[3] != notBuiltYet:
			t.Errorf("no test names behaviour %d (%s), and the table does not say %q", n, m[2], notBuiltYet)
		case want == "":
		case m[3] == notBuiltYet:
			t.Errorf("behaviour %d (%s) has tests, and the table says %q", n, m[2], notBuiltYet)
			stale = true
		case m[3] != want:
			t.Errorf("behaviour %d (%s) is held by %s, and the table says %s", n, m[2], want, m[3])
			stale = true
		}
		if want != "" {
			lines[i] = fmt.Sprintf("| %d | %s | %s |", n, m[2], want)
		}
	}
	if next != behaviourCount+1 {
		t.Errorf("the table ends with row %d of %d", next-1, behaviourCount)
	}
	if !stale {
		return
	}
	if !*update {
		t.Errorf("write the table anew: go test ./cmd/osteon -run TestEveryBehaviourHasANamedTest -update")
		return
	}
	if err := os.WriteFile(behavioursFile, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
}
