package main

import (
	"go/ast"
	"go/token"
	"regexp"
	"strconv"
	"testing"
)

// faultRows are the faults and the bad input that this release answers for, by their numbers: crashes at each step of
// ingest (01-10), disks (12-21), the network (22-28), members, clock and versions (32-42), resources and load (43-50),
// semantics of data (53-57); B rows are bad input.
var faultRows = []string{
	"F01", "F02", "F03", "F04", "F05", "F06", "F07", "F08", "F10", "F12", "F15", "F16", "F17", "F18", "F20", "F21",
	"F22", "F23", "F25", "F26", "F27", "F28", "F32", "F33", "F34", "F35", "F36", "F39", "F41", "F42", "F43", "F44",
	"F45", "F46", "F47", "F50", "F53", "F54", "F55", "F56", "F57",
	"B05", "B09", "B10", "B11", "B12", "B13", "B14", "B15", "B17", "B18", "B19", "B20", "B22", "B24", "B25", "B26", "B28", "B29",
}

var rowName = regexp.MustCompile(`[FB]\d\d`)

// Every row is in the name of a test or of a subtest, so that a report names what is broken.
func TestEveryFaultRowHasANamedTest(t *testing.T) {
	found := map[string]bool{}
	note := func(name string) {
		for _, row := range rowName.FindAllString(name, -1) {
			found[row] = true
		}
	}
	for _, s := range readModule(t) {
		if !s.test {
			continue
		}
		for _, decl := range s.file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && len(f.Name.Name) > 4 && f.Name.Name[:4] == "Test" {
				note(f.Name.Name)
			}
		}
		if s.path == "faults_test.go" || s.path == "cmd/osteon/faults_test.go" {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool { // names of subtests
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if text, err := strconv.Unquote(lit.Value); err == nil && len(text) < 100 && rowName.MatchString(text) && rowName.FindStringIndex(text)[0] == 0 {
					note(text)
				}
			}
			return true
		})
	}
	for _, row := range faultRows {
		if !found[row] {
			t.Errorf("no test names row %s", row)
		}
	}
}
