package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
)

// findWant asks by C-FIND at STUDY level and wants a final status; of absent studies it wants no match.
func (b *badBench) findWant(name string, keys map[dicom.Tag]string, want uint16, absent ...string) badCase {
	return badCase{"C-FIND " + name, func(ctx context.Context) error {
		if len(absent) > 0 {
			keys = map[dicom.Tag]string{dicom.StudyInstanceUID: strings.Join(absent, `\`)}
		}
		matches, err := find(ctx, b.n, "STUDY", keys)
		if len(absent) > 0 && len(matches) > 0 {
			return fmt.Errorf("%d matches for what was refused", len(matches))
		}
		return statusWant(err, want)
	}}
}

func statusWant(err error, want uint16) error {
	var refused *dimse.StatusError
	switch {
	case err == nil && want == dimse.StatusSuccess:
		return nil
	case errors.As(err, &refused) && refused.Status == want:
		return nil
	}
	return fmt.Errorf("%w, want %04XH", err, want)
}

// identifierWant sends raw bytes as the identifier of a C-FIND and wants a final status.
func (b *badBench) identifierWant(name string, identifier []byte, want uint16) badCase {
	return badCase{"C-FIND " + name, func(ctx context.Context) error {
		client, err := connect(ctx, b.n, []dul.ProposedContext{{
			ID: 1, AbstractSyntax: dimse.StudyRootFind, TransferSyntaxes: []string{dicom.ExplicitVRLittleEndian},
		}})
		if err != nil {
			return err
		}
		defer client.Close()
		conn := dimse.NewConn(client.Association())
		err = conn.Write(1, &dimse.Command{Field: dimse.CFindRQ, MessageID: 1, AffectedClass: dimse.StudyRootFind}, bytes.NewReader(identifier))
		for err == nil {
			var m *dimse.Message
			if m, err = conn.Read(); err == nil && !dimse.IsPending(m.Command.Status) {
				if m.Command.Status != want {
					return fmt.Errorf("status %04XH %q, want %04XH", m.Command.Status, m.Command.ErrorComment, want)
				}
				return client.Release(ctx)
			}
		}
		return err
	}}
}

func (b *badBench) moveWant(name, destination string, want uint16) badCase {
	return badCase{"C-MOVE " + name, func(ctx context.Context) error {
		client, err := connect(ctx, b.n, []dul.ProposedContext{{
			ID: 1, AbstractSyntax: dimse.StudyRootMove, TransferSyntaxes: []string{dicom.ExplicitVRLittleEndian},
		}})
		if err != nil {
			return err
		}
		defer client.Close()
		id := new(dicom.Dataset)
		id.SetStrings(dicom.QueryRetrieveLevel, "STUDY")
		id.SetStrings(dicom.StudyInstanceUID, "1.2.3")
		response, err := client.Move(ctx, dimse.QueryArgs{SOPClass: dimse.StudyRootMove, Identifier: id, Destination: destination}, nil)
		if err == nil && response.Status != want {
			err = fmt.Errorf("status %04XH %q, want %04XH", response.Status, response.ErrorComment, want)
		}
		return err
	}}
}

// casesB17: data that inflate a thousandfold, and request bodies that would.
func casesB17(b *badBench) (cases []badCase) {
	cases = b.refused("deflated 1000:1", b.inflating(256<<20))
	cases = append(cases, b.accepted("deflated, a little", func() instance { return b.inflating(1 << 20) })...)
	broken := b.inflating(1 << 10)
	broken.data = append(bytes.Clone(broken.data[:len(broken.data)/2]), bytes.Repeat([]byte{0xFF}, 64)...)
	cases = append(cases, b.refused("deflate stream corrupt", broken)...)
	cut := b.inflating(1 << 10)
	cut.data = cut.data[:len(cut.data)/2]
	cases = append(cases, b.refused("deflate stream cut", cut)...)
	body := part10(b.instance(nil), "")
	for i, coding := range []string{"gzip", "gzip, gzip", "deflate", "zstd", "br"} {
		for range i + 1 {
			body = zipped(body)
		}
		cases = append(cases, badCase{"STOW-RS in " + coding, func(ctx context.Context) error {
			_, err := b.request(ctx, "POST", "/dicom-web/studies", bytes.NewReader(body), http.StatusUnsupportedMediaType,
				"Content-Type", "application/dicom", "Content-Encoding", coding)
			return err
		}})
	}
	return append(cases, badCase{"STOW-RS part in gzip", func(ctx context.Context) error {
		text := "--" + stowBoundary + "\r\nContent-Type: application/dicom\r\nContent-Encoding: gzip\r\n\r\n" + string(body) + "\r\n--" + stowBoundary + "--\r\n"
		_, err := b.request(ctx, "POST", "/dicom-web/studies", strings.NewReader(text), http.StatusUnsupportedMediaType,
			"Content-Type", `multipart/related; type="application/dicom"; boundary=`+stowBoundary)
		return err
	}})
}

func zipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

// casesB18: sequences within sequences, at the limit of 64 and above it.
func casesB18(b *badBench) (cases []badCase) {
	for _, delimited := range []bool{true, false} {
		cases = append(cases, b.accepted(fmt.Sprintf("64 deep, delimited %v", delimited), func() instance {
			return b.before(dicom.PatientName, nested(64, delimited))
		})...)
		for _, depth := range []int{65, 1100, 10_000} {
			cases = append(cases, b.refused(fmt.Sprintf("%d deep, delimited %v", depth, delimited), b.before(dicom.PatientName, nested(depth, delimited)))...)
		}
	}
	cases = append(cases, b.refused("100,000 deep", b.before(dicom.PatientName, nested(100_000, true)))...)
	level := exact(dicom.QueryRetrieveLevel, "CS", "STUDY ")
	one := exact(dicom.StudyInstanceUID, "UI", "1.2.3\x00")
	cases = append(cases, b.identifierWant("64 deep", append(append(bytes.Clone(level), nested(64, true)...), one...), dimse.StatusSuccess))
	for _, depth := range []int{65, 1100, 100_000} {
		identifier := append(append(bytes.Clone(level), nested(depth, true)...), one...)
		cases = append(cases, b.identifierWant(fmt.Sprintf("%d deep", depth), identifier, dimse.StatusCannotUnderstand))
	}
	path := strings.Repeat("00081140.", 7)
	cases = append(cases, b.getWant("search 8 deep", "/dicom-web/studies?limit=1&"+path+"00081155=1.2.3", 200),
		b.getWant("search 9 deep", "/dicom-web/studies?limit=1&00081140."+path+"00081155=1.2.3", 400),
		b.getWant("search 1,100 deep", "/dicom-web/studies?"+strings.Repeat("00081140.", 1100)+"00081155=1.2.3", 400))
	deep := func(open, close string) string { return strings.Repeat(open, 66) + strings.Repeat(close, 66) }
	for _, c := range []struct {
		media, body string
		code        int
	}{
		{"application/json", "[]", 415},
		{"application/dicom+json", strings.Repeat("[", 100_000), 400},
		{"application/dicom+json", "[" + deep(`{"00081140":{"vr":"SQ","Value":[`, `]}}`) + "]", 413},
		{"application/dicom+xml", "<NativeDicomModel>" + strings.Repeat("<x>", 100_000), 413},
		{"application/dicom+xml", "<NativeDicomModel>" + deep(`<DicomAttribute tag="00081140" vr="SQ"><Item number="1">`, "</Item></DicomAttribute>") + "</NativeDicomModel>", 413},
	} {
		cases = append(cases, badCase{fmt.Sprintf("STOW-RS of %s, %.20s", c.media, c.body), func(ctx context.Context) error {
			_, err := b.request(ctx, "POST", "/dicom-web/studies", strings.NewReader(c.body), c.code, "Content-Type", c.media)
			return err
		}})
	}
	return cases
}

// scripts are texts that a careless page would run, and a spreadsheet too.
var scripts = map[string]string{
	"image":     `<img src=x onerror=alert('` + badCanary + `')>`,
	"svg":       `"><svg/onload=alert(1)>` + badCanary,
	"scheme":    `javascript:alert(1)//` + badCanary,
	"right":     "\u202e" + badCanary + "gpj.exe",
	"formula":   `=CMD("` + badCanary + `")`,
	"end":       `</script><script>` + badCanary + `</script>`,
	"separator": "a\u2028b" + badCanary,
	"languages": "山田^太郎 Мюллер شاهين 김희중 " + badCanary,
}

// casesB22: such texts in attributes come back as text in JSON that nobody runs, and an encapsulated page as something
// to save.
func casesB22(b *badBench) (cases []badCase) {
	for name, text := range scripts {
		cases = append(cases, badCase{"attributes with " + name, func(ctx context.Context) error {
			in := b.instance(func(d *dicom.Dataset) {
				d.SetStrings(dicom.SpecificCharacterSet, "ISO_IR 192")
				d.SetStrings(dicom.StudyDescription, text)
				d.SetStrings(dicom.PatientComments, text)
				d.SetStrings(dicom.PatientName, text)
			})
			if err := b.keptWant(name, in).do(ctx); err != nil {
				return err
			}
			for _, path := range []string{"/dicom-web/studies?includefield=all&StudyInstanceUID=" + in.study, "/dicom-web/studies/" + in.study + "/metadata"} {
				answer, err := b.request(ctx, "GET", path, nil, 200)
				if err != nil {
					return err
				}
				var list []map[string]struct{ Value []any }
				if err := json.Unmarshal(answer, &list); err != nil || len(list) != 1 {
					return fmt.Errorf("%s: %d results, %w", path, len(list), err)
				}
				if got := fmt.Sprint(list[0]["00081030"].Value); got != "["+text+"]" {
					return fmt.Errorf("%s: Study Description %q, want %q", path, got, text)
				}
			}
			return nil
		}})
		escaped := url.QueryEscape(text)
		for what, path := range map[string]string{
			"parameter": "/dicom-web/studies?" + escaped + "=1", "path": "/dicom-web/" + url.PathEscape(text), "value": "/dicom-web/studies?limit=" + escaped,
		} {
			code := 400
			if what == "path" {
				code = 404
			}
			for _, accept := range []string{"application/json", "text/html"} {
				cases = append(cases, badCase{name + " in a refused " + what, func(ctx context.Context) error {
					answer, err := b.request(ctx, "GET", path, nil, code, "Accept", accept)
					if err == nil && (bytes.ContainsAny(answer, "<>") || bytes.Contains(answer, []byte("\u202e"))) {
						err = fmt.Errorf("the answer echoes %q", answer)
					}
					return err
				}})
			}
		}
	}
	return append(cases, badCase{"encapsulated page", b.encapsulatedPage})
}

// encapsulatedPage stores a document of type text/html and asks for it as a browser would.
func (b *badBench) encapsulatedPage(ctx context.Context) error {
	in, d := b.dataset()
	in.class = "1.2.840.10008.5.1.4.1.1.104.2" // Encapsulated CDA
	d.SetStrings(dicom.SOPClassUID, in.class)
	d.Remove(dicom.PixelData)
	d.SetStrings(dicom.MIMETypeOfEncapsulatedDocument, "text/html")
	page := strings.Repeat("<script>alert(1)</script> ", 100)
	d.Set(dicom.Element{Tag: 0x00420011, VR: dicom.OB, Value: []byte(page)})
	in = encoded(in, d)
	if err := b.keptWant("page", in).do(ctx); err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, "GET", "http://"+b.n.HTTP+"/dicom-web/studies/"+in.study+"/series/"+in.series+"/instances/"+in.uid+"/bulkdata/00420011", nil)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", "text/html, */*;q=0.1")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	h := response.Header
	if response.StatusCode != 200 || strings.HasPrefix(h.Get("Content-Type"), "text/") || h.Get("X-Content-Type-Options") != "nosniff" ||
		!strings.HasPrefix(h.Get("Content-Disposition"), "attachment") || !strings.Contains(h.Get("Content-Security-Policy"), "sandbox") {
		return fmt.Errorf("HTTP %d, %v", response.StatusCode, h)
	}
	return nil
}

// casesB24: XML that expands, that fetches, that is no text, or whose tags are endless, as metadata of a store request.
func casesB24(b *badBench) (cases []badCase) {
	name := func(text string) string {
		return `<NativeDicomModel><DicomAttribute tag="00100010" vr="PN"><PersonName><Alphabetic><FamilyName>` + text + `</FamilyName></Alphabetic></PersonName></DicomAttribute></NativeDicomModel>`
	}
	laughs := `<!DOCTYPE x [<!ENTITY l0 "` + badCanary + `">`
	for i := 1; i < 10; i++ {
		laughs += fmt.Sprintf(`<!ENTITY l%d "%s">`, i, strings.Repeat(fmt.Sprintf("&l%d;", i-1), 10))
	}
	for what, text := range map[string]string{
		"billion laughs":         laughs + "]>" + name("&l9;"),
		"a file of the server":   `<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>` + name("&f;"),
		"an address to fetch":    `<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">` + name("&f;"),
		"a million attributes":   `<NativeDicomModel` + strings.Repeat(` a=""`, 1_000_000) + `/>`,
		"another encoding":       `<?xml version="1.0" encoding="UTF-16"?>` + name("x"),
		"bytes that are no text": name(badCanary + "\xff\xfe"),
		"NUL":                    name(badCanary + "\x00"),
		"no end":                 strings.TrimSuffix(name(badCanary), "</NativeDicomModel>"),
	} {
		cases = append(cases, badCase{what, func(ctx context.Context) error {
			code := 400
			if strings.Contains(what, "million") {
				code = 413
			}
			_, err := b.request(ctx, "POST", "/dicom-web/studies", strings.NewReader(text), code, "Content-Type", "application/dicom+xml")
			return err
		}})
	}
	return cases
}

// casesB25: files that are something else too. The preamble is not stored: what comes back has one of zeros.
func casesB25(b *badBench) (cases []badCase) {
	for name, preamble := range map[string]string{
		"Windows program": "MZ\x90\x00\x03\x00\x00\x00" + badCanary, "ELF program": "\x7fELF\x02\x01\x01" + badCanary, "shell script": "#!/bin/sh\n" + badCanary + "\n",
		"TIFF": "II*\x00\x08\x00\x00\x00", "page": "<html><script>" + badCanary + "</script>", "PDF": "%PDF-1.7\n" + badCanary, "zip": "PK\x03\x04" + badCanary,
	} {
		cases = append(cases, badCase{"STOW-RS " + name, func(ctx context.Context) error {
			in := b.instance(nil)
			if err := b.stowWant(name, part10(in, preamble), 200, 0).do(ctx); err != nil {
				return err
			}
			answer, err := b.request(ctx, "GET", "/dicom-web/studies/"+in.study+"/series/"+in.series+"/instances/"+in.uid, nil, 200,
				"Accept", "application/dicom; transfer-syntax=*")
			if err == nil && (len(answer) < 132 || !bytes.Equal(answer[:128], make([]byte, 128)) || string(answer[128:132]) != "DICM" || !bytes.HasSuffix(answer, in.data)) {
				err = fmt.Errorf("came back as %.140q", answer)
			}
			return err
		}})
	}
	// A zip's directory stands at the end: behind the data set, where it is no element.
	in := b.instance(nil)
	in.data = append(in.data, "PK\x05\x06"+strings.Repeat("\x00", 18)...)
	return append(cases, b.refused("zip directory at the end", in)...)
}

// casesB28: control characters in all that a peer may write, and a canary in all but AE titles, which the log names
// when an association is refused; the harness searches the log.
func casesB28(b *badBench) (cases []badCase) {
	nasty := badCanary + "\r\nlevel=ERROR msg=forged\x1b[31m\x00\x07\u202e"
	cases = append(cases, b.exchange("titles", false, rawRequest(b.n.AET, "A\r\n\x1b[31m\x00FORGED",
		rawContext(1, dimse.VerificationClass, implicitSyntax), rawUser(rawItem(0x55, []byte("V\r\n\x1b[31m"+badCanary)))), func(p rawPeer) error { return p.want(2) }))
	cases = append(cases, b.exchange("called title", false, rawRequest("\r\n\x1bFORGED", "\x1b[31mFORGED", rawContext(1, dimse.VerificationClass, implicitSyntax), rawUser()),
		func(p rawPeer) error { return p.want(2) })) // any title may be called here
	cases = append(cases, b.accepted("texts", func() instance {
		return b.instance(func(d *dicom.Dataset) {
			for _, tag := range []dicom.Tag{dicom.PatientName, dicom.PatientID, dicom.StudyDescription, dicom.AccessionNumber, dicom.Modality, dicom.StudyDate} {
				d.SetStrings(tag, nasty)
			}
		})
	})...)
	cases = append(cases, b.refused("UID", b.instance(func(d *dicom.Dataset) { d.SetStrings(dicom.StudyInstanceUID, nasty) }))...)
	cases = append(cases, b.findWant("keys", map[dicom.Tag]string{dicom.PatientName: nasty, dicom.PatientID: nasty, dicom.StudyInstanceUID: nasty}, dimse.StatusSuccess),
		b.moveWant("destination", "\r\n\x1b[31mFORGED", dimse.StatusUnknownDestination))
	escaped := url.QueryEscape(nasty)
	for path, code := range map[string]int{
		"/dicom-web/studies?PatientName=" + escaped: 200, "/dicom-web/studies?" + escaped + "=1": 400, "/dicom-web/" + escaped: 404,
		"/dicom-web/studies/" + escaped + "/metadata": 400, "/dicom-web/studies?PatientID=" + escaped + "&PatientID=1": 400,
	} {
		cases = append(cases, badCase{"GET " + path, func(ctx context.Context) error {
			_, err := b.request(ctx, "GET", path, nil, code, "User-Agent", badCanary+strings.Repeat("x", 8000), "X-Forwarded-For", badCanary, "X-Forwarded-Host", badCanary)
			return err
		}})
	}
	return append(cases, badCase{"part header", func(ctx context.Context) error {
		text := "--" + stowBoundary + "\r\nContent-Type: application/" + badCanary + "\r\nContent-Location: \x1b[31m" + badCanary + "\r\n\r\nx\r\n--" + stowBoundary + "--\r\n"
		_, err := b.request(ctx, "POST", "/dicom-web/studies", strings.NewReader(text), 415, "Content-Type", `multipart/related; type="application/dicom"; boundary=`+stowBoundary)
		return err
	}})
}

// casesB29: queries that cost. Each is answered within badPatience or refused.
func casesB29(b *badBench) (cases []badCase) {
	wild := strings.Repeat("*?", 5000) + "x"
	var uids []string
	for i := range 60_000 {
		uids = append(uids, fmt.Sprintf("1.2.826.0.1.3680043.%d", 10_000_000+i))
	}
	list := func(n int) string { return strings.Join(uids[:n], `\`) }
	level := exact(dicom.QueryRetrieveLevel, "CS", "STUDY ")
	long := func(n int) []byte { // a list longer than the 64 KiB that a UI element of Explicit VR can hold: as UN
		text := list(n)
		if len(text)%2 == 1 {
			text += "\x00"
		}
		return append(bytes.Clone(level), exact(dicom.StudyInstanceUID, "UN", text)...)
	}
	for name, keys := range map[string]map[dicom.Tag]string{
		"wild cards":         {dicom.PatientName: wild, dicom.AccessionNumber: wild},
		"stars":              {dicom.PatientName: strings.Repeat("*a", 5000), dicom.StudyDescription: strings.Repeat("a*", 5000) + "b"},
		"values":             {dicom.AccessionNumber: strings.Repeat(`a\`, 5000) + "b"},
		"separators":         {dicom.StudyInstanceUID: strings.Repeat(`\`, 10_000) + "1.2.3"},
		"dates reversed":     {dicom.StudyDate: "20991231-19000101"},
		"ranges":             {dicom.StudyDate: strings.Repeat("-", 2000)},
		"2,000 UIDs":         {dicom.StudyInstanceUID: list(2000)},
		"universal of no ID": {dicom.PatientID: "**", dicom.StudyInstanceUID: "1.2.3"},
	} {
		cases = append(cases, b.findWant(name, keys, dimse.StatusSuccess))
	}
	cases = append(cases, b.identifierWant("60,000 UIDs", long(60_000), dimse.StatusSuccess),
		b.identifierWant("identifier of 5 MiB", append(bytes.Clone(level), el(tagPrivate, "UN", 5<<20, strings.Repeat(" ", 5<<20))...), dimse.StatusCannotUnderstand),
		b.identifierWant("no level", exact(dicom.PatientName, "PN", "*?*?"), dimse.StatusMismatch))
	for name, c := range map[string]struct {
		query string
		code  int
	}{
		"wild cards":       {"PatientName=" + url.QueryEscape(wild) + "&StudyInstanceUID=1.2.3", 200},
		"dates reversed":   {"StudyDate=20991231-19000101", 200},
		"2,000 UIDs":       {"StudyInstanceUID=" + strings.Join(uids[:2000], ","), 200},
		"2,001 UIDs":       {"StudyInstanceUID=" + strings.Join(uids[:2001], ","), 400},
		"512 parameters":   {strings.Repeat("includefield=00100010&", 511) + "StudyInstanceUID=1.2.3", 200},
		"513 parameters":   {strings.Repeat("includefield=00100010&", 512) + "StudyInstanceUID=1.2.3", 400},
		"64 KiB":           {"PatientName=" + strings.Repeat("*", 64<<10), 414},
		"fuzzy":            {"PatientName=" + strings.Repeat("a*", 2000) + "&fuzzymatching=true&StudyInstanceUID=1.2.3", 200},
		"offset 2^63-1":    {"offset=9223372036854775807", 200},
		"limit 2^64":       {"limit=18446744073709551616", 400},
		"everything, once": {"includefield=all&limit=1", 200},
	} {
		cases = append(cases, b.getWant("search: "+name, "/dicom-web/studies?"+c.query, c.code))
	}
	return cases
}
