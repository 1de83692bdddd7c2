package dicom

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestReadPart10(t *testing.T) {
	body, err := sample().Encode(nil, ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	implicit, err := sample().Encode(nil, ImplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	big, err := sample().Encode(nil, ExplicitVRBigEndian)
	if err != nil {
		t.Fatal(err)
	}
	meta := AppendMeta(nil, "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4", ExplicitVRLittleEndian, "1.2.3", "OSTEON", "SCANNER")
	wrongLength := bytes.Clone(meta)
	wrongLength[140] += 10
	implicitMeta, err := (&Dataset{Elements: []Element{{Tag: TransferSyntaxUID, VR: UI, Value: []byte(ImplicitVRLittleEndian + "\x00")}}}).Encode([]byte("DICM"), ImplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, syntax string
		file, body   []byte
	}{
		{"as it should be", ExplicitVRLittleEndian, append(bytes.Clone(meta), body...), body},
		{"no preamble", ExplicitVRLittleEndian, append(bytes.Clone(meta[128:]), body...), body},
		{"no preamble, no prefix", ExplicitVRLittleEndian, append(bytes.Clone(meta[132:]), body...), body},
		{"no group length", ExplicitVRLittleEndian, append(bytes.Clone(meta[144:]), body...), body},
		{"wrong group length", ExplicitVRLittleEndian, append(bytes.Clone(wrongLength), body...), body},
		{"no meta", ExplicitVRLittleEndian, body, body},
		{"no meta, implicit", ImplicitVRLittleEndian, implicit, implicit},
		{"no meta, big endian", ExplicitVRBigEndian, big, big},
		{"preamble and prefix, no meta", ExplicitVRLittleEndian, append(bytes.Clone(meta[:132]), body...), body},
		{"implicit meta", ImplicitVRLittleEndian, append(bytes.Clone(implicitMeta), implicit...), implicit},
		{"meta alone", ExplicitVRLittleEndian, meta, nil},
	} {
		_, syntax, r, err := ReadPart10(bytes.NewReader(c.file))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		rest, err := io.ReadAll(r)
		if err != nil || syntax != c.syntax || !bytes.Equal(rest, c.body) {
			t.Errorf("%s: syntax %s, %d bytes left of %d, %v", c.name, syntax, len(rest), len(c.body), err)
		}
	}
	for _, c := range []struct {
		name, file string
		want       error
	}{
		{"empty", "", ErrNotDICOM},
		{"text", "hello, this is no DICOM file at all", ErrNotDICOM},
		{"HTTP", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", ErrNotDICOM},
		{"meta cut off", string(meta[:160]), ErrTruncated},
		{"meta too long", "DICM" + string(AppendElementHeader(nil, true, false, NewTag(2, 0x102), OB, 2<<20)), ErrLimit},
		{"prefix alone", strings.Repeat("\x00", 128) + "DICM", ErrNotDICOM},
	} {
		if _, _, _, err := ReadPart10(strings.NewReader(c.file)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

// TestDeflatedMeta: a deflated data set may begin with bytes that look like group 0002.
func TestDeflatedMeta(t *testing.T) {
	meta := AppendMeta(nil, "1.2", "1.2.3", DeflatedExplicitVRLittleEndian, "1.2.3", "", "")
	_, syntax, r, err := ReadPart10(bytes.NewReader(append(meta, "\x02\x00\x10\x00UI\x02\x00xx"...)))
	if err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil || len(rest) != 10 || syntax != DeflatedExplicitVRLittleEndian {
		t.Errorf("%d bytes left, syntax %s, %v", len(rest), syntax, err)
	}
}

// Behaviour 42.
func TestAppendMeta(t *testing.T) {
	b := AppendMeta([]byte("x"), "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4", ExplicitVRLittleEndian, "1.2.3", "OSTEON", "SCANNER")
	meta, _, _, err := ReadPart10(bytes.NewReader(b[1:]))
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := meta.Int(FileMetaInformationGroupLength); !ok || n != len(b)-1-144 {
		t.Errorf("group length %d, want %d", n, len(b)-1-144)
	}
	for tag, want := range map[Tag]string{
		MediaStorageSOPClassUID: "1.2.840.10008.5.1.4.1.1.2", MediaStorageSOPInstanceUID: "1.2.3.4", TransferSyntaxUID: ExplicitVRLittleEndian,
		ImplementationClassUID: "1.2.3", ImplementationVersionName: "OSTEON", SourceApplicationEntityTitle: "SCANNER",
	} {
		if got := meta.String(tag); got != want {
			t.Errorf("%v: got %q, want %q", tag, got, want)
		}
	}
}
