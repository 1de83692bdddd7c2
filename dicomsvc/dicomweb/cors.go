package dicomweb

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// cors adds the fields of the Fetch standard that let a page from an allowed origin read the answer.
// Nothing is said to other origins, so that their browsers withhold it from them.
func (s *Server) cors(h http.Header, r *http.Request) {
	if len(s.cfg.Origins) == 0 {
		return
	}
	h.Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	if origin == "" || !slices.Contains(s.cfg.Origins, origin) && !slices.Contains(s.cfg.Origins, "*") {
		return
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Expose-Headers", "Accept-Ranges, Content-Encoding, Content-Length, Content-Location, Content-Range, ETag, Retry-After, Warning")
}

// options answers an OPTIONS request: a browser's preflight, a request for the capabilities of the service (PS3.18 §8.9), or what may be done
// with the resource.
func (s *Server) options(w http.ResponseWriter, r *http.Request, t target) *problem {
	asked := strings.Join(r.Header.Values("Accept"), ",")
	described := t.resource == resRoot || strings.Contains(asked, "wadl") || strings.Contains(asked, "json")
	if r.Header.Get("Access-Control-Request-Method") == "" && described {
		w.Header().Set("Allow", strings.Join(t.methods(), ", "))
		return s.retrieveCapabilities(w, r)
	}
	s.preflight(w, r, t)
	return nil
}

// preflight answers an OPTIONS request: what may be done here, and to a browser what it may send.
func (s *Server) preflight(w http.ResponseWriter, r *http.Request, t target) {
	h := w.Header()
	methods := strings.Join(t.methods(), ", ")
	h.Set("Allow", methods)
	if h.Get("Access-Control-Allow-Origin") != "" && r.Header.Get("Access-Control-Request-Method") != "" {
		h.Set("Access-Control-Allow-Methods", methods)
		h.Set("Access-Control-Allow-Headers", "Accept, Authorization, Cache-Control, Content-Type, If-None-Match, If-Range, Range, X-Requested-With")
		h.Set("Access-Control-Max-Age", strconv.Itoa(int(preflightAge.Seconds())))
		h.Add("Vary", "Access-Control-Request-Method, Access-Control-Request-Headers")
	}
	w.WriteHeader(http.StatusNoContent)
}
