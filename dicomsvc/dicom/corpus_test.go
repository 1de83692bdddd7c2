package dicom

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const corpusDir = "../../../shared/corpus"

// corpusFiles returns the paths of the corpus beside the repository, relative to it, skipping the test when there is none.
func corpusFiles(t testing.TB) []string {
	var files []string
	err := filepath.WalkDir(corpusDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".tsv") || strings.HasSuffix(path, ".md") {
			return err
		}
		rel, err := filepath.Rel(corpusDir, path)
		files = append(files, rel)
		return err
	})
	if err != nil {
		t.Skipf("no corpus beside the repository: %v", err)
	}
	return files
}

// scan runs a whole file through the reader and the scanner.
func scan(b []byte) (*Scanner, error) {
	_, syntax, body, err := ReadPart10(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	s := NewScanner(body, syntax, Limits{})
	if _, err := s.Header(); err != nil {
		return s, err
	}
	return s, s.Rest()
}

// verdicts reads what other software said of each file: Orthanc's status and dcmdump's result.
func verdicts(t testing.TB) map[string][2]string {
	raw, err := os.ReadFile(filepath.Join(corpusDir, "peer_verdicts.tsv"))
	if err != nil {
		t.Skipf("no verdicts: %v", err)
	}
	m := map[string][2]string{}
	for _, line := range strings.Split(string(raw), "\n")[1:] {
		if f := strings.Split(line, "\t"); len(f) >= 4 {
			m[f[0]] = [2]string{f[1], f[3]}
		}
	}
	return m
}

// TestCorpus reads every file of the corpus: what both Orthanc and DCMTK take is taken.
func TestCorpus(t *testing.T) {
	peers := verdicts(t)
	taken := 0
	for _, rel := range corpusFiles(t) {
		b, err := os.ReadFile(filepath.Join(corpusDir, rel))
		if err != nil {
			t.Fatal(err)
		}
		s, err := scan(b)
		peer := peers[rel]
		both := strings.HasPrefix(peer[0], "200") && peer[1] == "ok"
		end := "ok"
		switch {
		case err == nil:
			taken++
			end = corpusEnd(s)
			corpusFrames(t, rel, s)
		case errors.Is(err, ErrTruncated), errors.Is(err, ErrMalformed), errors.Is(err, ErrLimit), errors.Is(err, ErrNotDICOM):
			end = err.Error()
		default:
			t.Errorf("%s: error of no kind: %v", rel, err)
		}
		if both && err != nil {
			t.Errorf("%s: both peers take it: %v", rel, err)
		}
		if !both && err == nil || err != nil {
			t.Logf("%-90s orthanc %-18q dcmdump %-5q us: %s", rel, peer[0], peer[1], end)
		}
	}
	t.Logf("%d taken", taken)
}

func corpusEnd(s *Scanner) string {
	f, err := ExtractFacts(s.header)
	end := "ok"
	if err != nil {
		end += " " + err.Error()
	}
	if s.Frames() != nil {
		end += fmt.Sprintf(" frames %d of %d %s", s.Frames().Len(), f.Frames, s.Frames().Reason())
	}
	return end
}

// corpusFrames checks that every frame can be told apart and lies within the data set.
func corpusFrames(t *testing.T, rel string, s *Scanner) {
	table := s.Frames()
	if table == nil {
		return
	}
	checkFrames(t, table, s.Offset())
	if n := numberOfFrames(s.header); table.Len() != n && !table.Video() {
		t.Errorf("%s: %d frames of %d: %s", rel, table.Len(), n, table.Reason())
	}
}
