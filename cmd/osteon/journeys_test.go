package main

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// ARCHITECTURE.md names functions and types in its journeys; each must exist, so that the page cannot
// drift from the code unnoticed.
func TestJourneysNameRealFunctions(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, journeys, ok := strings.Cut(string(raw), "## Journeys")
	if !ok {
		t.Fatal("ARCHITECTURE.md has no section Journeys")
	}
	journeys, _, _ = strings.Cut(journeys, "\n## ")
	declared := map[string]bool{}
	for _, s := range readModule(t) {
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				declared[d.Name.Name] = true
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if named, ok := spec.(*ast.TypeSpec); ok {
						declared[named.Name.Name] = true
					}
				}
			}
		}
	}
	names := regexp.MustCompile("`([A-Za-z]+(?:\\.[A-Za-z]+)*)`").FindAllStringSubmatch(journeys, -1)
	if len(names) < 20 {
		t.Fatalf("only %d names in the journeys", len(names))
	}
	for _, n := range names {
		name := n[1][strings.LastIndexByte(n[1], '.')+1:]
		if !declared[name] {
			t.Errorf("ARCHITECTURE.md names %s: no function or type %s", n[1], name)
		}
	}
}
