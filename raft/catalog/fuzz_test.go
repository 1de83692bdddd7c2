package catalog

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/dicomsvc/dicom"
)

// naiveMatches is attribute matching of PS3.4 §C.2.2.2 written down a second time, for values of text: slow
// and without anything compiled. It guards match.go.
func naiveMatches(vr dicom.VR, keys []string, text string) bool {
	var wanted []string
	for _, key := range keys {
		key = strings.Trim(key, " \x00")
		if key == "" {
			continue
		}
		if strings.Count(key, "*") == len(key) {
			return true
		}
		wanted = append(wanted, key)
	}
	if len(wanted) == 0 {
		return true
	}
	if text == "" {
		return false
	}
	for _, value := range strings.Split(strings.Trim(text, " \x00"), `\`) {
		value = strings.Trim(value, " ")
		for _, key := range wanted {
			if naiveValue(vr, key, value) {
				return true
			}
		}
	}
	return false
}

func naiveValue(vr dicom.VR, key, value string) bool {
	wild := strings.ContainsRune(key, '*') || strings.ContainsRune(key, '?')
	switch {
	case vr == dicom.UI:
		return key == value
	case vr == dicom.IS || vr == dicom.DS:
		a, err1 := strconv.ParseFloat(key, 64)
		b, err2 := strconv.ParseFloat(value, 64)
		return key == value || err1 == nil && err2 == nil && a == b
	case vr == dicom.PN:
		return naivePerson(key, value)
	case wild:
		return naiveWild([]rune(key), []rune(value))
	case vr == dicom.DA || vr == dicom.TM:
		return naiveWhen(vr, key, value)
	}
	return key == value
}

// naivePerson compares names group by group; a key of one group may be any group of the name.
func naivePerson(key, value string) bool {
	keys, values := strings.SplitN(key, "=", 3), strings.SplitN(value, "=", 3)
	one := func(key, value string) bool {
		key, value = foldName(key), foldName(value)
		if !strings.ContainsAny(key, "*?") {
			return key == value
		}
		padded := value
		for strings.Count(padded, "^") < 4 {
			padded += "^"
		}
		return naiveWild([]rune(key), []rune(value)) || naiveWild([]rune(key), []rune(padded))
	}
	if len(keys) == 1 {
		return slices.ContainsFunc(values, func(v string) bool { return one(key, v) })
	}
	for i, k := range keys {
		v := ""
		if i < len(values) {
			v = values[i]
		}
		if k != "" && !one(k, v) {
			return false
		}
	}
	return true
}

// naiveWhen compares dates and times as far as the bounds say.
func naiveWhen(vr dicom.VR, key, value string) bool {
	plain := func(s string) string {
		s = strings.Trim(s, " \x00")
		if vr == dicom.DA {
			return strings.ReplaceAll(s, ".", "")
		}
		return strings.ReplaceAll(s, ":", "")
	}
	low, high, isRange := strings.Cut(key, "-")
	if !isRange {
		high = low
	}
	low, high, value = plain(low), plain(high), plain(value)
	return value != "" && value >= low && (high == "" || value[:min(len(value), len(high))] <= high)
}

// naiveWild fills the table of which beginnings of p match which beginnings of s.
func naiveWild(p, s []rune) bool {
	matches := make([]bool, len(s)+1) // of the empty pattern
	matches[0] = true
	for _, c := range p {
		next := make([]bool, len(s)+1)
		for i := range next {
			switch {
			case c == '*':
				next[i] = matches[i] || i > 0 && next[i-1]
			case i > 0:
				next[i] = matches[i-1] && (c == '?' || c == s[i-1])
			}
		}
		matches = next
	}
	return matches[len(s)]
}

// FuzzMatch holds the matcher against the naive one.
func FuzzMatch(f *testing.F) {
	for _, seed := range []struct {
		want, value string
		vr          byte
	}{
		{"SMITH*", "smith^john", 0}, {"20260101-", "20260102", 1}, {"*?*?*a", "aaaa", 2}, {"10:00-1100", "110030.5", 3},
		{"=山*", "Yamada^Tarou=山田^太郎=やまだ", 0}, {`01\x`, `7\1`, 5}, {`1.2\1.3`, "1.3", 6}, {"-20260101", "2026.01.01", 1},
		{"1e2", "100", 7}, {"a^*", "A", 0}, {"20260101120000-0500-20260103", "20260102", 4},
	} {
		f.Add(seed.want, seed.value, seed.vr)
	}
	vrs := []dicom.VR{dicom.PN, dicom.DA, dicom.LO, dicom.TM, dicom.DT, dicom.IS, dicom.UI, dicom.DS}
	f.Fuzz(func(t *testing.T, want, value string, n uint8) {
		vr, keys := vrs[int(n)%len(vrs)], strings.Split(want, `\`)
		m := compile(Key{VR: vr, Values: keys})
		got := m.matches(attribute{vr: vr, value: []byte(value)})
		if vr == dicom.DT || len(want)+len(value) > 500 || !utf8.ValidString(want) || !utf8.ValidString(value) {
			return // offsets from UTC have no second definition here; texts of the catalog are UTF-8
		}
		if naive := naiveMatches(vr, keys, value); got != naive {
			t.Fatalf("%v key %q, value %q: got %v, by definition %v", vr, want, value, got, naive)
		}
	})
}

// FuzzRestore installs checkpoints in which a file was changed: a snapshot of a peer that is authenticated and
// wrong (B26). Restore takes the state or leaves the old one as it was; whatever it took can be read, refused
// or found damaged, without a panic.
func FuzzRestore(f *testing.F) {
	from := openTest(f)
	apply(f, from, at(0), items(f, ct(1, 1, 1), ct(1, 1, 2), ct(2, 1, 1)))
	add := items(f, ct(3, 1, 1), ct(3, 1, 2))
	begin, seal := sealOf(1, add.Items)
	apply(f, from, at(1), add, begin, seal)
	if err := from.Checkpoint("copy"); err != nil {
		f.Fatal(err)
	}
	names, err := from.cfg.FS.List("copy")
	if err != nil {
		f.Fatal(err)
	}
	slices.Sort(names)
	files := make([][]byte, len(names))
	for i, name := range names {
		file, err := from.cfg.FS.Open("copy/" + name)
		if err != nil {
			f.Fatal(err)
		}
		if files[i], err = io.ReadAll(file); err != nil {
			f.Fatal(err)
		}
		file.Close()
		f.Add(byte(i), uint16(len(files[i])/2), []byte{0xFF}, false)
		f.Add(byte(i), uint16(len(files[i])/3), []byte{}, true)
		f.Add(byte(i), uint16(20), []byte("other bytes"), false)
	}
	want := stateHash(f, from)
	f.Fuzz(func(t *testing.T, n byte, offset uint16, change []byte, cut bool) {
		to := openTest(t)
		apply(t, to, at(0), items(t, ct(5, 1, 1)))
		old := stateHash(t, to)
		which, untouched := int(n)%len(files), true
		for i, name := range names {
			b := bytes.Clone(files[i])
			if i == which {
				at := min(int(offset), len(b))
				copy(b[at:], change)
				if cut {
					b = b[:at]
				}
				untouched = bytes.Equal(b, files[i])
			}
			put(t, to.cfg.FS, "taken", name, b)
		}
		err := to.Restore("taken")
		got, _, hashErr := to.StateHash(context.Background())
		switch {
		case err != nil && (hashErr != nil || got != old):
			t.Fatalf("refused with %v, and the old state is gone: %v", err, hashErr)
		case untouched && (err != nil || hashErr != nil || got != want):
			t.Fatalf("an unchanged checkpoint: %v, %v", err, hashErr)
		case err == nil:
			readEverything(to)
		}
	})
}

func put(t testing.TB, fs vfs.FS, dir, name string, b []byte) {
	t.Helper()
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file, err := fs.Create(fs.PathJoin(dir, name), vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
}

// readEverything asks for all that a restored catalog may hold and takes any answer.
func readEverything(c *Catalog) {
	r, err := c.With(nil)
	if err != nil {
		return
	}
	defer r.Close()
	ctx := context.Background()
	for _, s := range []shot{ct(1, 1, 1), ct(2, 1, 1), ct(3, 1, 1), ct(3, 1, 2)} {
		_, _ = r.Study(ctx, s.studyUID())
		_, _ = r.Locate(ctx, s.uid())
	}
	for _, level := range []Level{LevelPatient, LevelStudy, LevelSeries, LevelImage} {
		for _, err := range r.Search(ctx, Principal{}, &Query{Level: level}) {
			if err != nil {
				break
			}
		}
	}
}
