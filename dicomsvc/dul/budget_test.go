package dul

import "testing"

// As many contexts as there are odd IDs are taken (TestBehaviour02SameAbstractSyntax128Times); one more cannot have an
// ID of its own, and a request with one ID twice ends as any that cannot be read (PS3.8 Table 9-10, Sta2, AA-1).
func TestBudgetOneContextTooMany(t *testing.T) {
	for n, want := range map[int]byte{contextsMax: typeAC, contextsMax + 1: typeAbort} {
		r := newRaw(t, accepting())
		r.send(request(func(q *Request) {
			q.Contexts = nil
			for i := range n {
				q.Contexts = append(q.Contexts, ProposedContext{byte(2*i + 1), ctStorage, []string{implicitLE}})
			}
		}))
		if typ, body := r.pdu(); typ != want {
			t.Errorf("%d contexts: answered by PDU type %d, % x, want %d", n, typ, body[:min(len(body), 8)], want)
		}
	}
}
