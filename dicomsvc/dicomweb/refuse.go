package dicomweb

import (
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strconv"

	"osteon/dicomsvc"
	"osteon/dicomsvc/refusal"
)

// What is refused here or fails is noted for this node's admin, without anything of the request but its kind.

// guard, deferred, keeps a panic in a handler from more than its request. It is counted and logged by its place
// alone: its text may hold a piece of an object.
func (s *Server) guard(w *pacedWriter, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler {
		panic(v)
	}
	s.panics.Add(1)
	s.log.Error("panic: the request is given up", "kind", fmt.Sprintf("%T", v), "stack", refusal.Stack())
	bad := newProblem(http.StatusInternalServerError, "a fault in this program", remedyFor(http.StatusInternalServerError))
	s.noteProblem(r, target{}, bad)
	if w.status != 0 {
		panic(http.ErrAbortHandler) // a part must not pass for the whole
	}
	w.Header().Set("Connection", "close") // what is left of the body is not read
	bad.write(w, r, "the request")
}

// Panics counts the faults of this program that cost a request.
func (s *Server) Panics() int64 { return s.panics.Load() }

// echoed is what a problem repeats of the request.
var echoed = regexp.MustCompile(`"[^"]*"`)

// noteProblem notes a request that was refused or failed. That something is not there is no refusal.
func (s *Server) noteProblem(r *http.Request, t target, bad *problem) {
	if bad.status == http.StatusNotFound {
		return
	}
	s.note(r, serviceOf(r, t), strconv.Itoa(bad.status), http.StatusText(bad.status), echoed.ReplaceAllString(bad.what, "(a part of the request)"), bad.remedy)
}

// noteObject notes an object of a store request that was not stored.
func (s *Server) noteObject(r *request, err error) {
	s.note(r.Request, "STOW-RS", fmt.Sprintf("%04X", dicomsvc.DIMSEStatus(err)), dicomsvc.Kind(err), reason(err), dicomsvc.Remedy(err))
}

// reason is why an object was refused, in words that do not differ from one object to the next.
func reason(err error) string {
	if element, what := dicomsvc.Fault(err); element != "" {
		return dicomsvc.Kind(err) + ": " + element + ": " + what
	}
	return dicomsvc.Kind(err)
}

func (s *Server) note(r *http.Request, what, code, words, why, do string) {
	if s.cfg.Refusals == nil {
		return
	}
	caller := "anonymous"
	if who, bad := s.authenticate(r); bad != nil {
		caller = ""
	} else if who.Name != "" {
		caller = who.Name
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	s.cfg.Refusals.Note(refusal.Event{What: what, Calling: caller, From: host, Code: code, Words: words, Why: why, Do: do})
}

// serviceOf names the service of PS3.18 §10 that a request is for.
func serviceOf(r *http.Request, t target) string {
	switch {
	case r.Method == http.MethodPost:
		return "STOW-RS"
	case t.resource == resStudies, t.resource == resSeries, t.resource == resInstances:
		return "QIDO-RS"
	case t.resource == resWADO:
		return "WADO-URI"
	case t.resource != "":
		return "WADO-RS"
	}
	return "DICOMweb"
}
