package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// rooms is the layer table of ARCHITECTURE.md: a package may import packages of this module only from
// rooms with a smaller floor. Every package of the module has a row. Tests of any package may use node/nodetest.
var rooms = map[string]int{
	"cmd/osteon":  9,
	"cmd/planted": 9,

	"bench": 8,

	"node":          7,
	"node/nodetest": 8,

	"dicomsvc/scp":      6,
	"dicomsvc/dicomweb": 6,

	"dicomsvc": 5,

	"erasure":      4,
	"raft/catalog": 4,

	"dicomsvc/dimse": 3,
	"dicomsvc/pixel": 3,

	"raft/ring":       2,
	"raft/local":      2,
	"erasure/journal": 2,
	"erasure/shard":   2,
	"erasure/stripe":  2,

	"dicomsvc/refusal": 1,
	"dicomsvc/dicom":   1,
	"dicomsvc/dul":     1,
	"node/link":        1,
	"raft/vault":       1,
	"raft/engine":      1,

	"erasure/place": 0,
	"erasure/plant": 0,
}

// gates names, for each engine, the only packages that may import it.
var gates = map[string][]string{
	"github.com/hashicorp/raft":              {"raft/ring"},
	"github.com/hashicorp/memberlist":        {"node"},
	"github.com/klauspost/reedsolomon":       {"erasure/stripe"},
	"github.com/suyashkumar/dicom":           {"dicomsvc/dicom"},
	"github.com/quic-go/quic-go":             {"node/link"},
	"github.com/cockroachdb/pebble/v2":       {"raft/ring", "raft/local", "raft/catalog", "raft/engine"},
	"github.com/prometheus/client_golang":    {"node"},
	"github.com/alecthomas/kong":             {"cmd/osteon"},
	"go.yaml.in/yaml/v3":                     {"cmd/osteon", "node"},
	"github.com/hashicorp/go-hclog":          {"raft/ring"},
	"golang.org/x/text/encoding":             {"dicomsvc/dicom"},
	"github.com/cockroachdb/pebble/v2/vfs":   nil, // the file system seam: anywhere
	"github.com/cockroachdb/pebble/v2/bloom": {"raft/catalog", "raft/ring", "raft/local"},
}

// walls name imports that go down and are forbidden all the same.
var walls = map[string][]string{
	"dicomsvc/scp":      {"erasure", "raft"},
	"dicomsvc/dicomweb": {"erasure", "raft"},
	"raft/catalog":      {"erasure/journal", "erasure/stripe", "erasure/shard"},
}

// seams are calls that reach past a seam; only the named packages, which own them, may make them.
var seams = map[string][]string{
	"time.Now":                {"cmd/osteon", "cmd/planted", "node", "bench"},
	"time.Since":              {"cmd/osteon", "cmd/planted", "node", "bench"},
	"time.Until":              {"cmd/osteon", "node", "bench"},
	"os.Open":                 {"cmd/osteon", "node", "bench"},
	"os.OpenFile":             {"cmd/osteon", "node", "bench"},
	"os.Create":               {"cmd/osteon", "node", "bench"},
	"os.ReadFile":             {"cmd/osteon", "node", "bench"},
	"os.WriteFile":            {"cmd/osteon", "node", "bench"},
	"os.Getenv":               {"cmd/osteon"},
	"net.Dial":                {"cmd/osteon", "node", "bench"},
	"net.DialTimeout":         {"cmd/osteon", "node", "bench"},
	"net.Listen":              {"cmd/osteon", "node", "bench"},
	"rand.Reader":             {"cmd/osteon", "node", "bench"},
	"rand.Read":               {"cmd/osteon", "node", "bench"},
	"rand.Int":                {"cmd/osteon", "node", "bench"},
	"rand.IntN":               {"cmd/osteon", "node", "bench"},
	"rand.Float64":            {"cmd/osteon", "node", "bench"},
	"http.ListenAndServe":     nil,
	"http.DefaultClient":      nil,
	"prometheus.MustRegister": nil,
}

type source struct {
	path, pkg string
	test      bool
	file      *ast.File
	generator bool
}

func readModule(t *testing.T) []source {
	t.Helper()
	root := filepath.Join("..", "..")
	var out []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "build") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		generator := false
		for _, group := range file.Comments {
			for _, c := range group.List {
				generator = generator || c.Text == "//go:build ignore"
			}
		}
		out = append(out, source{
			path: rel, pkg: filepath.ToSlash(filepath.Dir(rel)),
			test: strings.HasSuffix(rel, "_test.go"), file: file, generator: generator,
		})
		return nil
	})
	if err != nil {
		t.Fatalf("read module: %v", err)
	}
	if len(out) < 20 {
		t.Fatalf("read module: only %d Go files found", len(out))
	}
	return out
}

func TestImportsGoDown(t *testing.T) {
	for _, s := range readModule(t) {
		if s.generator {
			continue
		}
		floor, known := rooms[s.pkg]
		if !known {
			t.Errorf("%s: package %s has no row in the layer table", s.path, s.pkg)
			continue
		}
		for _, imp := range s.file.Imports {
			path, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				t.Fatalf("%s: import %s: %v", s.path, imp.Path.Value, err)
			}
			if own, ok := strings.CutPrefix(path, "osteon/"); ok {
				if below, ok := rooms[own]; !ok || (below >= floor && !(s.test && (own == s.pkg || own == "node/nodetest"))) {
					t.Errorf("%s (floor %d) imports %s (floor %d): imports go down only", s.path, floor, own, below)
				}
				for _, wall := range walls[s.pkg] {
					if !s.test && (own == wall || strings.HasPrefix(own, wall+"/")) {
						t.Errorf("%s imports %s: %s may not", s.path, own, s.pkg)
					}
				}
				continue
			}
			if s.test {
				continue
			}
			engine, allowed := gateOf(path)
			if engine != "" && allowed != nil && !contains(allowed, s.pkg) {
				t.Errorf("%s imports %s: only %v may", s.path, path, allowed)
			}
		}
	}
}

// gateOf returns the longest gate that covers an import path.
func gateOf(path string) (engine string, allowed []string) {
	for e, pkgs := range gates {
		if (path == e || strings.HasPrefix(path, e+"/")) && len(e) > len(engine) {
			engine, allowed = e, pkgs
		}
	}
	return engine, allowed
}

func TestSeamsAreNotBypassed(t *testing.T) {
	for _, s := range readModule(t) {
		if s.test || s.generator || strings.HasPrefix(s.pkg, "node/nodetest") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, ok := sel.X.(*ast.Ident)
			if !ok {
				return true
			}
			owners, forbidden := seams[pkg.Name+"."+sel.Sel.Name]
			if forbidden && !contains(owners, s.pkg) {
				t.Errorf("%s uses %s.%s: take it through the package's Config", s.path, pkg.Name, sel.Sel.Name)
			}
			return true
		})
	}
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
