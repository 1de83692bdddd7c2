package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"
)

// Every bug that the package names stands in the table once.
func TestEveryBugHasARow(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../../erasure/plant/plant.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]int{}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok {
			name, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			named[name] = 0
		}
		return true
	})
	for _, r := range table {
		if _, ok := named[string(r.bug)]; !ok {
			t.Errorf("the table has a row for %q, which the package does not name", r.bug)
		}
		named[string(r.bug)]++
	}
	for name, rows := range named {
		if rows != 1 {
			t.Errorf("%s has %d rows, want 1", name, rows)
		}
	}
	if len(named) < 20 {
		t.Errorf("%d bugs are planted, want at least 20", len(named))
	}
}
