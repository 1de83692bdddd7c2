package dicomweb

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"unicode"
)

// problem is a refusal: what is wrong, and what to do about it. It is sent as RFC 9457 JSON, or as plain
// text to a client that asks for text.
type problem struct {
	status int
	what   string
	remedy string
	header http.Header // further fields, or nil
	cause  error       // what the log is told and the client is not, or nil
}

func newProblem(status int, what, remedy string) *problem {
	return &problem{status: status, what: what, remedy: remedy}
}

// with adds a header field to the reply.
func (p *problem) with(name, value string) *problem {
	if p.header == nil {
		p.header = make(http.Header, 1)
	}
	p.header.Set(name, value)
	return p
}

// write sends the problem. where names the resource or parameter at fault, never a value of it.
func (p *problem) write(w http.ResponseWriter, r *http.Request, where string) {
	h := w.Header()
	for _, name := range []string{"Content-Length", "Content-Encoding", "Content-Range", "Content-Disposition", "ETag", "Accept-Ranges"} {
		h.Del(name)
	}
	for name, values := range p.header {
		h[name] = values
	}
	h.Set("Cache-Control", "no-store")
	var body []byte
	if wantsText(r) {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		body = []byte(strconv.Itoa(p.status) + " " + http.StatusText(p.status) + "\nwhat:  " + p.what +
			"\nwhere: " + where + "\ndo:    " + p.remedy + "\n")
	} else {
		h.Set("Content-Type", "application/problem+json")
		body, _ = json.Marshal(struct {
			Type   string `json:"type"`
			Title  string `json:"title"`
			Status int    `json:"status"`
			Detail string `json:"detail"`
			Where  string `json:"where"`
			Remedy string `json:"remedy"`
		}{"about:blank", http.StatusText(p.status), p.status, p.what, where, p.remedy})
		body = append(body, '\n')
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.status)
	if r.Method != http.MethodHead {
		w.Write(body)
	}
}

// wantsText tells whether the client would rather read text than JSON: a browser's address line, or one
// who asks for text outright.
func wantsText(r *http.Request) bool {
	for _, m := range parseMediaRanges(strings.Join(r.Header.Values("Accept"), ",")) {
		if strings.HasPrefix(m.kind, "text/") && m.quality > 0 {
			return true
		}
		if strings.Contains(m.kind, "json") {
			return false
		}
	}
	return false
}

// quote makes a piece of the request fit to be echoed: cut short, nothing but printable characters.
func quote(s string) string {
	cut := false
	if len(s) > problemTextMax {
		s, cut = s[:problemTextMax], true
	}
	s = strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) || c == '<' || c == '>' || c == '"' || c == unicode.ReplacementChar || unicode.Is(unicode.Cf, c) {
			return '?'
		}
		return c
	}, s)
	if cut {
		s += "..."
	}
	return `"` + s + `"`
}
