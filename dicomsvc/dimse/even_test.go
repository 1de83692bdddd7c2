package dimse

import (
	"bytes"
	"context"
	"io"
	"testing"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dul"
)

// taker is an archive that takes every syntax.
type taker struct{ archive }

func (*taker) Associate(_ context.Context, r *dul.Request) Decision {
	a := &dul.Acceptance{}
	for _, pc := range r.Contexts {
		a.Contexts = append(a.Contexts, dul.ContextResult{ID: pc.ID, Result: dul.ContextAccepted, TransferSyntax: pc.TransferSyntaxes[0]})
	}
	return Decision{Acceptance: a}
}

// A deflated data set of odd length leaves with a pad byte; everything else leaves as it is.
func TestDeflatedIsSentEven(t *testing.T) {
	got := make(chan []byte, 1)
	s := start(t, &taker{archive{storing: func(_ context.Context, r *StoreRequest) StoreResponse {
		b, _ := io.ReadAll(r.Data)
		got <- b
		return StoreResponse{}
	}}})
	cfg := s.dialConfig()
	cfg.Association.Contexts = nil
	syntaxes := []string{dicom.DeflatedExplicitVRLittleEndian, ExplicitLittleEndian}
	for i, syntax := range syntaxes {
		cfg.Association.Contexts = append(cfg.Association.Contexts,
			dul.ProposedContext{ID: byte(2*i + 1), AbstractSyntax: ctStorage, TransferSyntaxes: []string{syntax}})
	}
	c := s.dial(t, cfg)
	for _, syntax := range syntaxes {
		for _, n := range []int{1, 2, 70_001, 70_002} {
			for _, from := range []bool{false, true} {
				data := bytes.Repeat([]byte{7}, n)
				args := StoreArgs{SOPClass: ctStorage, SOPInstance: uidOf(1), Syntax: syntax, Data: bytes.NewReader(data)}
				if from {
					args.From = bytes.NewBuffer(data)
				}
				want := data
				if n%2 == 1 && syntax == dicom.DeflatedExplicitVRLittleEndian {
					want = append(bytes.Clone(data), 0)
				}
				if res, err := c.Store(t.Context(), args); err != nil || res.Status != StatusSuccess {
					t.Fatalf("%s, %d bytes: %v, %v", syntax, n, res, err)
				}
				if b := <-got; !bytes.Equal(b, want) {
					t.Errorf("%s, %d bytes, from %v: got %d bytes", syntax, n, from, len(b))
				}
			}
		}
	}
}
