package dicomweb

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// mixed writes the body of a store request of metadata and bulk data.
type mixed struct{ bytes.Buffer }

// part adds one part; header holds names and values in turn.
func (m *mixed) part(body []byte, header ...string) *mixed {
	m.WriteString("--XX\r\n")
	for i := 0; i+1 < len(header); i += 2 {
		if header[i+1] != "" {
			m.WriteString(header[i] + ": " + header[i+1] + "\r\n")
		}
	}
	m.WriteString("\r\n")
	m.Write(body)
	m.WriteString("\r\n")
	return m
}

func (m *mixed) end() []byte { return append(m.Bytes(), "--XX--\r\n"...) }

func (s *service) stowMixed(t testing.TB, path, meta string, body []byte) *response {
	t.Helper()
	return s.do(t, http.MethodPost, path, bytes.NewReader(body), "Content-Type", `multipart/related; type="`+meta+`"; boundary=XX`)
}

var uris = regexp.MustCompile(`(?:BulkDataURI":|BulkData uri=)"([^"]+)"`)

// addBulk adds the bulk data that metadata name, as they can be retrieved.
func (m *mixed) addBulk(t testing.TB, s *service, metadata []byte, withLength bool) {
	t.Helper()
	for _, found := range uris.FindAllSubmatch(metadata, -1) {
		uri := string(found[1])
		r := s.get(t, uri, "Accept", `multipart/related; type="*/*"; transfer-syntax=*`)
		if r.StatusCode != 200 {
			continue
		}
		parts := r.pieces(t)
		for _, p := range parts {
			length, location := "", uri
			if withLength {
				length = fmt.Sprint(len(p.body))
			}
			if len(parts) > 1 {
				location = p.header.Get("Content-Location")
				location = uri + location[strings.LastIndex(location, "/frames/"):]
			}
			m.part(p.body, "Content-Type", p.header.Get("Content-Type"), "Content-Location", location, "Content-Length", length)
		}
	}
}

// TestStoreMetadataWholeCorpus: what every real file's metadata and bulk data say, in JSON and in XML, can be stored elsewhere and says the
// same there.
//
// Behaviours 57, 60, 62.
func TestStoreMetadataWholeCorpus(t *testing.T) {
	from := newService(t, nil)
	var all []*dicomsvc.Instance
	for _, name := range corpusNames(t) {
		_, syntax, body, err := dicom.ReadPart10(bytes.NewReader(corpusFile(t, name)))
		if err != nil {
			continue
		}
		if res, err := from.archive.Put(t.Context(), dicomsvc.PutRequest{TransferSyntaxUID: syntax, Body: body}); err == nil && res.Outcome == dicomsvc.OutcomeStored {
			all = append(all, from.archive.item(&dicomsvc.Instance{SOPInstanceUID: res.SOPInstanceUID}).in)
		}
	}
	for _, meta := range []string{mediaDICOMJSON, mediaDICOMXML} {
		to := newService(t, nil)
		stored := 0
		for i, in := range all {
			url := instanceURL(from.root, in.StudyInstanceUID, in.SeriesInstanceUID, in.SOPInstanceUID)
			var body mixed
			text := from.get(t, url+"/metadata", "Accept", mediaDICOMJSON).want(t, 200).body
			if meta == mediaDICOMJSON {
				body.part(text, "Content-Type", meta)
			} else {
				text = from.get(t, url+"/metadata", "Accept", `multipart/related; type="application/dicom+xml"`).want(t, 200).pieces(t)[0].body
				body.part(text, "Content-Type", meta)
			}
			body.addBulk(t, from, text, i%2 == 0)
			r := to.stowMixed(t, "/studies/"+in.StudyInstanceUID, meta, body.end())
			if r.StatusCode != 200 {
				t.Logf("%s: %d %s", in.TransferSyntaxUID, r.StatusCode, clip(r.body))
				continue
			}
			stored++
			there := instanceURL(to.root, in.StudyInstanceUID, in.SeriesInstanceUID, in.SOPInstanceUID)
			want := describe(t, from.get(t, url+"/metadata").want(t, 200).body)
			got := describe(t, to.get(t, there+"/metadata").want(t, 200).body)
			for tag, v := range want {
				if tag == "00080005" || tag == "00083002" {
					continue
				}
				if got[tag] != v && (meta == mediaDICOMJSON || !strings.Contains(v, `\u0000`)) { // XML has no NUL
					t.Errorf("%s %s: %.200s, want %.200s", in.SOPInstanceUID, tag, got[tag], v)
				}
			}
			frames := from.get(t, url+"/pixeldata", "Accept", `multipart/related; type="*/*"; transfer-syntax=*`)
			if frames.StatusCode != 200 {
				continue
			}
			back := to.get(t, there+"/pixeldata", "Accept", `multipart/related; type="*/*"; transfer-syntax=*`).want(t, 200).pieces(t)
			for n, p := range frames.pieces(t) {
				if n >= len(back) || !bytes.Equal(bytes.TrimRight(p.body, "\x00"), bytes.TrimRight(back[n].body, "\x00")) || p.header.Get("Content-Type") != back[n].header.Get("Content-Type") {
					t.Errorf("%s: frame %d is another", in.SOPInstanceUID, n+1)
					break
				}
			}
		}
		t.Logf("%s: %d of %d stored", meta, stored, len(all))
		if stored < len(all)-1 { // one has fewer pixels than its attributes say
			t.Errorf("%s: only %d of %d stored", meta, stored, len(all))
		}
	}
}

// describe is one metadata object with its bulk URIs cut down to what does not depend on the server.
func describe(t testing.TB, body []byte) map[string]string {
	t.Helper()
	var list []map[string]json.RawMessage
	if err := json.Unmarshal(body, &list); err != nil || len(list) != 1 {
		t.Fatalf("%d objects, %v", len(list), err)
	}
	out := map[string]string{}
	for tag, v := range list[0] {
		text := regexp.MustCompile(`"vr":"(OB|OW)","BulkDataURI":"[^"]*/studies/`).ReplaceAllString(string(v), `"BulkDataURI":"`)
		out[tag] = regexp.MustCompile(`http://[^/]*/dicom-web`).ReplaceAllString(text, "")
	}
	return out
}

// imageJSON is the JSON of a small image; extra goes in front of its end.
func imageJSON(instance string, extra ...string) string {
	text := `{"00080016":{"vr":"UI","Value":["1.2.840.10008.5.1.4.1.1.7"]},"00080018":{"vr":"UI","Value":["` + instance + `"]},` +
		`"0020000D":{"vr":"UI","Value":["1.2"]},"0020000E":{"vr":"UI","Value":["1.2.3"]},"00280010":{"vr":"US","Value":[2]},"00280011":{"vr":"US","Value":[2]},` +
		`"00280002":{"vr":"US","Value":[1]},"00280100":{"vr":"US","Value":[16]}`
	for _, e := range extra {
		text += "," + e
	}
	return text + "}"
}

func bulk(tag, vr, uri string) string {
	return `"` + tag + `":{"vr":"` + vr + `","BulkDataURI":"` + uri + `"}`
}

// TestStoreMetadataOutcomes: order, lengths, locations and faults of the parts of metadata with bulk data.
//
// Behaviour 62.
func TestStoreMetadataOutcomes(t *testing.T) {
	const px = "\x01\x02\x03\x04\x05\x06\x07\x08"
	jpeg := "\xFF\xD8\xFF\xE0\x00\x04AB\xFF\xC0\x00\x0B\x08\x00\x02\x00\x02\x01\x01\x11\x00\xFF\xD9"
	pixel := func(uri string) string { return bulk("7FE00010", "OW", uri) }
	type piece struct{ body, kind, location, length string }
	list := func(objects ...string) piece {
		return piece{"[" + strings.Join(objects, ",") + "]", mediaDICOMJSON, "", ""}
	}
	octets := func(uri, body string) piece { return piece{body, mediaOctets, uri, ""} }
	huge := strings.Repeat("x", heldBytesMax)
	tests := []struct {
		name             string
		path             string
		pieces           []piece
		status           int
		good, bad, other int
		reason           string
		syntax, value    string // of the first stored instance; value of its pixel data
	}{
		{"without bulk data", "", []piece{list(imageJSON("1.1"))}, 200, 1, 0, 0, "", "1.2.840.10008.1.2.1", ""},
		{"pixels inline", "", []piece{list(imageJSON("1.1", `"7FE00010":{"vr":"OW","InlineBinary":"AQIDBAUGBwg="}`))}, 200, 1, 0, 0, "", "1.2.840.10008.1.2.1", px},
		{"pixels", "", []piece{list(imageJSON("1.1", pixel("a"))), octets("a", px)}, 200, 1, 0, 0, "", "1.2.840.10008.1.2.1", px},
		{"pixels of a said length", "", []piece{list(imageJSON("1.1", pixel("a"))), {px, mediaOctets, "a", "8"}}, 200, 1, 0, 0, "", "", px},
		{"a part without a type", "", []piece{list(imageJSON("1.1", pixel("a"))), {px, "", "a", "8"}}, 200, 1, 0, 0, "", "", px},
		{"two in order", "", []piece{list(imageJSON("1.1", pixel("a")), imageJSON("1.2", pixel("b"))), octets("a", px), octets("b", px)}, 200, 2, 0, 0, "", "", px},
		{"two in the other order", "", []piece{list(imageJSON("1.1", pixel("a")), imageJSON("1.2", pixel("b"))), octets("b", px), octets("a", px)}, 200, 2, 0, 0, "", "", px},
		{"one part for two", "", []piece{list(imageJSON("1.1", pixel("a")), imageJSON("1.2", pixel("a"))), octets("a", px)}, 200, 2, 0, 0, "", "", px},
		{"a table behind the pixels", "", []piece{list(imageJSON("1.1", pixel("a"), bulk("00281201", "OW", "lut"))), octets("a", px), octets("lut", "abcd")}, 200, 1, 0, 0, "", "", px},
		{"a table in a sequence", "", []piece{list(imageJSON("1.1", `"00283000":{"vr":"SQ","Value":[{`+bulk("00283006", "OW", "lut")+`}]}`, pixel("a"))), octets("lut", "abcd"), octets("a", px)}, 200, 1, 0, 0, "", "", px},
		{"a document", "", []piece{list(imageJSON("1.1", bulk("00420011", "OB", "doc"))), {"%PDF-", "application/pdf", "doc", ""}}, 200, 1, 0, 0, "", "", ""},
		{"JPEG without a syntax", "", []piece{list(imageJSON("1.1", pixel("a"))), {jpeg, "image/jpeg", "a", ""}}, 200, 1, 0, 0, "", dicom.JPEGBaseline8Bit, jpeg},
		{"JPEG of a said syntax", "", []piece{list(imageJSON("1.1", pixel("a"))), {jpeg, "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.51", "a", ""}}, 200, 1, 0, 0, "", dicom.JPEGExtended12Bit, jpeg},
		{"a syntax in the metadata", "", []piece{list(imageJSON("1.1", `"00083002":{"vr":"UI","Value":["1.2.840.10008.1.2.4.91"]}`, pixel("a"))), {"J2K!", "image/jp2", "a", ""}}, 200, 1, 0, 0, "", dicom.JPEG2000, "J2K!"},
		{"octets of a compressed syntax", "", []piece{list(imageJSON("1.1", pixel("a"))), {"J2K!", "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.4.90", "a", "4"}}, 200, 1, 0, 0, "", dicom.JPEG2000Lossless, "J2K!"},
		{"two frames", "", []piece{list(imageJSON("1.1", `"00280008":{"vr":"IS","Value":[2]}`, pixel("a"))), {"ONE!", "image/jp2", "a/frames/1", ""}, {"TWO!", "image/jp2", "a/frames/2", "4"}}, 200, 1, 0, 0, "", dicom.JPEG2000Lossless, "ONE!TWO!"},
		{"two frames with another part between", "", []piece{list(imageJSON("1.1", `"00280008":{"vr":"IS","Value":[2]}`, pixel("a")), imageJSON("1.2", pixel("b"))),
			{"ONE!", "image/jp2", "a/frames/1", ""}, octets("b", px), {"TWO!", "image/jp2", "a", "4"}}, 200, 2, 0, 0, "", dicom.JPEG2000Lossless, "ONE!TWO!"},
		{"native frames", "", []piece{list(imageJSON("1.1", `"00280008":{"vr":"IS","Value":[2]}`, pixel("a"))), octets("a/frames/1", px), octets("a/frames/2", px)}, 200, 1, 0, 0, "", "", px + px},
		{"into its study", "/1.2", []piece{list(imageJSON("1.1", pixel("a"))), octets("a", px)}, 200, 1, 0, 0, "", "", px},
		{"into another study", "/9.9", []piece{list(imageJSON("1.1", pixel("a"))), octets("a", px)}, 409, 0, 1, 0, "43264", "", ""},
		{"a second frame is missing", "", []piece{list(imageJSON("1.1", `"00280008":{"vr":"IS","Value":[2]}`, pixel("a")), imageJSON("1.2", pixel("b"))), {"ONE!", "image/jp2", "a", ""}, octets("b", px)}, 202, 1, 1, 0, "49152", "", px},
		{"bulk data missing", "", []piece{list(imageJSON("1.1", pixel("a")), imageJSON("1.2", pixel("b"))), octets("b", px)}, 202, 1, 1, 0, "49152", "", px},
		{"only bulk data missing", "", []piece{list(imageJSON("1.1", pixel("a")))}, 400, 0, 1, 0, "49152", "", ""},
		{"a part that nobody names", "", []piece{list(imageJSON("1.1", pixel("a"))), octets("z", px), octets("a", px)}, 200, 1, 0, 0, "", "", px},
		{"pixels too short", "", []piece{list(imageJSON("1.1", pixel("a")), imageJSON("1.2", pixel("b"))), octets("a", "1234"), octets("b", px)}, 202, 1, 1, 0, "49152", "", px},
		{"pixels too short by what follows them", "", []piece{list(imageJSON("1.1", `"00280008":{"vr":"IS","Value":[2]}`, pixel("a"), `"FFFCFFFC":{"vr":"OB","InlineBinary":"AAAAAA=="}`)), octets("a", "")}, 400, 0, 1, 0, "49152", "", ""},
		{"pixels too long", "", []piece{list(imageJSON("1.1", pixel("a")), imageJSON("1.2", pixel("b"))), octets("a", px+px), octets("b", px)}, 202, 1, 1, 0, "49152", "", px},
		{"a length that lies", "", []piece{list(imageJSON("1.1", pixel("a"))), {px, mediaOctets, "a", "4294967200"}}, 400, 0, 1, 0, "49152", "", ""},
		{"a length of 4 GiB", "", []piece{list(imageJSON("1.1", pixel("a"))), {px, mediaOctets, "a", "4294967296"}}, 400, 0, 1, 0, "49152", "", ""},
		{"big endian", "", []piece{list(imageJSON("1.1", pixel("a"))), {px, "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.2", "a", ""}}, 415, 0, 1, 0, "290", "", ""},
		{"a page for pixels", "", []piece{list(imageJSON("1.1", pixel("a"))), {px, "text/html", "a", ""}}, 415, 0, 1, 0, "290", "", ""},
		{"an object that is none", "", []piece{list(imageJSON("1.1", pixel("a")), `{"x":1}`, imageJSON("1.2", pixel("b"))), octets("a", px), octets("b", px)}, 202, 2, 0, 1, "49152", "", px},
		{"JSON that breaks off", "", []piece{{"[" + imageJSON("1.1", pixel("a")) + `,{"0008`, mediaDICOMJSON, "", ""}, octets("a", px)}, 202, 1, 0, 1, "49152", "", px},
		{"no UIDs", "", []piece{list(`{"00280010":{"vr":"US","Value":[2]}}`)}, 400, 0, 0, 1, "49152", "", ""},
		{"100,000 arrays (B18)", "", []piece{{strings.Repeat("[", 100_000), mediaDICOMJSON, "", ""}}, 400, 0, 0, 1, "49152", "", ""},
		{"too much metadata", "", []piece{{"[" + strings.Repeat(" ", metadataBytesMax), mediaDICOMJSON, "", ""}}, 413, 0, 0, 1, "49152", "", ""},
		{"too much to hold", "", []piece{list(imageJSON("1.1", pixel("a"), bulk("00281201", "OW", "lut")), imageJSON("1.2", pixel("b"))), octets("a", huge+"x"), octets("lut", "abcd"), octets("b", px)}, 202, 1, 1, 0, "49152", "", px},
		{"too much to hold alone", "", []piece{list(imageJSON("1.1", pixel("a"), bulk("00281201", "OW", "lut"))), {"", mediaOctets, "a", fmt.Sprint(heldBytesMax + 1)}, octets("lut", "abcd")}, 413, 0, 1, 0, "49152", "", ""},
		{"much that waits for one frame", "", []piece{list(imageJSON("1.1", `"00280008":{"vr":"IS","Value":[2]}`, pixel("a")), imageJSON("1.2", bulk("00420011", "OB", "doc"))),
			{"ONE!", "image/jp2", "a", ""}, {huge + "yy", "application/pdf", "doc", fmt.Sprint(len(huge) + 2)}}, 202, 1, 1, 0, "49152", "", ""},
	}
	for _, tt := range tests {
		s := newService(t, nil)
		var body mixed
		for _, p := range tt.pieces {
			body.part([]byte(p.body), "Content-Type", p.kind, "Content-Location", p.location, "Content-Length", p.length)
		}
		r := s.stowMixed(t, "/studies"+tt.path, mediaDICOMJSON, body.end())
		if r.StatusCode != tt.status {
			t.Errorf("%s: status %d, want %d: %s", tt.name, r.StatusCode, tt.status, clip(r.body))
			continue
		}
		answer := r.object(t)
		n := func(tag string) int { return len(answer[tag].Value) }
		if n("00081199") != tt.good || n("00081198") != tt.bad || n("0008119A") != tt.other {
			t.Errorf("%s: %d stored, %d failed, %d unknown, want %d, %d, %d: %s", tt.name, n("00081199"), n("00081198"), n("0008119A"), tt.good, tt.bad, tt.other, clip(r.body))
			continue
		}
		if tt.reason != "" && failureReason(t, r) != fmt.Sprintf("%04X", atoi(tt.reason)) {
			t.Errorf("%s: reason %s, want %s", tt.name, failureReason(t, r), tt.reason)
		}
		if strays := tt.name == "a part that nobody names"; strays != (r.Header.Get("Warning") != "") && tt.status == 200 {
			t.Errorf("%s: Warning %q", tt.name, r.Header.Get("Warning"))
		}
		items := s.archive.chosen(dicomsvc.Selection{})
		if len(items) != tt.good {
			t.Errorf("%s: %d instances in the archive", tt.name, len(items))
		}
		if tt.good == 0 {
			continue
		}
		it := items[0]
		if tt.name == "two frames with another part between" {
			it = s.archive.chosen(dicomsvc.Selection{SOPInstanceUIDs: []string{"1.1"}})[0]
		}
		if tt.syntax != "" && it.in.TransferSyntaxUID != tt.syntax {
			t.Errorf("%s: stored in %s, want %s", tt.name, it.in.TransferSyntaxUID, tt.syntax)
		}
		if got := pixelValue(t, it); got != tt.value && got != tt.value+"\x00" {
			t.Errorf("%s: pixel data %q, want %q", tt.name, got, tt.value)
		}
	}
}

func atoi(s string) (n int) {
	fmt.Sscan(s, &n)
	return n
}

// pixelValue is all frames of an instance, "" where there are none.
func pixelValue(t testing.TB, it *fakeItem) string {
	t.Helper()
	if it.frames == nil {
		return ""
	}
	var b bytes.Buffer
	for i := range it.frames.Len() {
		extents, err := it.frames.Frame(nil, i)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range extents {
			b.Write(it.data[e.Offset : e.Offset+e.Length])
		}
	}
	return b.String()
}

// TestStoreMetadataStreams: pixel data that come with metadata pass through, whatever their size.
//
// Behaviours 51, 62.
func TestStoreMetadataStreams(t *testing.T) {
	s := newService(t, func(_ *Config, a *fakeArchive) { a.discard = true })
	const size = 128 << 20
	meta := "[" + strings.Replace(imageJSON("1.1", bulk("7FE00010", "OW", "a")), `[2]},"00280011":{"vr":"US","Value":[2]`, `[8192]},"00280011":{"vr":"US","Value":[8192]`, 1) + "]"
	for _, length := range []string{"", fmt.Sprintf("Content-Length: %d\r\n", size)} {
		s.archive.items = nil
		body := io.MultiReader(strings.NewReader("--XX\r\nContent-Type: application/dicom+json\r\n\r\n"+meta+"\r\n--XX\r\nContent-Location: a\r\n"+length+"\r\n"),
			io.LimitReader(zeros{}, size), strings.NewReader("\r\n--XX--\r\n"))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s.do(t, http.MethodPost, "/studies", body, "Content-Type", `multipart/related; type="application/dicom+json"; boundary=XX`).want(t, 200)
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 8<<20 {
			t.Errorf("%d MiB were allocated for 128 MiB in", used>>20)
		}
	}
}
