package dimse

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dul"
)

// Behaviour 7.
func TestBehaviour07CommandSet(t *testing.T) {
	store := &Command{Field: CStoreRQ, MessageID: 7, Priority: PriorityHigh, HasData: true,
		AffectedClass: ctStorage, AffectedInstance: "1.2.3", MoveOriginator: "WORKSTATION", MoveOriginatorID: 9}
	b := store.Append([]byte("prefix"))[6:]
	if n := le.Uint32(b[8:]); int(n) != len(b)-12 {
		t.Errorf("group length %d in %d bytes", n, len(b))
	}
	last := -1
	for off := 0; off < len(b); off += 8 + int(le.Uint32(b[off+4:])) {
		el := int(le.Uint16(b[off+2:]))
		if le.Uint16(b[off:]) != 0 || el <= last || le.Uint32(b[off+4:])%2 != 0 {
			t.Errorf("element %04X after %04X", el, last)
		}
		last = el
	}
	for _, c := range []*Command{
		store,
		{Field: CStoreRQ | responseBit, RespondedTo: 7, Status: StatusMismatch, AffectedClass: ctStorage, AffectedInstance: "1.2.3",
			ErrorComment: "two words", OffendingElements: []uint32{0x00080018, 0x7FE00010}},
		{Field: CEchoRQ, MessageID: 65535, AffectedClass: VerificationClass},
		{Field: CCancelRQ, RespondedTo: 3},
		{Field: CMoveRQ, MessageID: 3, MoveDestination: "DEST", AffectedClass: StudyRootMove, HasData: true},
		{Field: CMoveRQ | responseBit, RespondedTo: 3, Status: StatusPending, Counters: &Counters{1, 2, 3, 4}},
		{Field: NActionRQ, MessageID: 1, RequestedClass: StorageCommitmentClass, RequestedInstance: StorageCommitmentModel, ActionType: 1, HasData: true},
		{Field: NEventRQ, MessageID: 1, AffectedClass: StorageCommitmentClass, AffectedInstance: StorageCommitmentModel, EventType: 2, HasData: true},
		{Field: NGetRQ, MessageID: 1, RequestedClass: "1.2", RequestedInstance: "1.3", AttributeIDs: []uint32{0x00100010}},
		{Field: NSetRQ | responseBit, RespondedTo: 1, Status: StatusProcessingFailure, ErrorID: 0xA710},
	} {
		got, err := DecodeCommand(c.Append(nil))
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("got %+v, %v\nwant %+v", got, err, c)
		}
		// (0000,0800) = 0101H if and only if no data set follows.
		if got := bytes.Contains(c.Append(nil), []byte{0, 0, 0, 8, 2, 0, 0, 0, 1, 1}); got == c.HasData {
			t.Errorf("%04X: Command Data Set Type does not say HasData %v", c.Field, c.HasData)
		}
	}
	final := &Command{Field: CMoveRQ | responseBit, Counters: &Counters{Completed: 2}}
	if bytes.Contains(final.Append(nil), []byte{0, 0, 0x20, 0x10}) {
		t.Error("a final response tells remaining sub-operations")
	}
}

// B20: command sets that must not pass, and harmless ones that must.
// Behaviour 7.
func TestBehaviour07BadCommandSets(t *testing.T) {
	good := (&Command{Field: CEchoRQ, MessageID: 1}).Append(nil)
	el := func(group, element uint16, v ...byte) []byte {
		b := le.AppendUint16(le.AppendUint16(nil, group), element)
		return append(le.AppendUint32(b, uint32(len(v))), v...)
	}
	lies := slices.Clone(good)
	le.PutUint32(lies[8:], 0xFFFFFFFF)
	if _, err := DecodeCommand(lies); err != nil {
		t.Errorf("wrong group length: %v", err)
	}
	if _, err := DecodeCommand(append(slices.Clone(good), el(0, 0x5130, 1, 2)...)); err != nil {
		t.Errorf("retired element: %v", err)
	}
	for name, b := range map[string][]byte{
		"empty":           nil,
		"cut":             good[:len(good)-1],
		"no field":        el(0, elDataSetType, 1, 1),
		"no type":         el(0, elField, 0x30, 0),
		"other group":     append(slices.Clone(good), el(8, 0x18, '1', 0)...),
		"order":           append(slices.Clone(good), el(0, elField, 0x30, 0)...),
		"repeated":        append(el(0, elField, 0x30, 0), el(0, elField, 0x30, 0)...),
		"long field":      append(el(0, elField, 0x30, 0, 0, 0), el(0, elDataSetType, 1, 1)...),
		"empty field":     append(el(0, elField), el(0, elDataSetType, 1, 1)...),
		"4 GiB element":   append(slices.Clone(good), 0, 0, 1, 9, 0xFF, 0xFF, 0xFF, 0xFF),
		"tag list length": append(slices.Clone(good), el(0, elOffending, 1, 2)...),
	} {
		if _, err := DecodeCommand(b); !errors.Is(err, ErrCommand) {
			t.Errorf("%s: got %v", name, err)
		}
	}

	a := &archive{}
	s := start(t, a)
	for name, send := range map[string]func(*dul.Association) error{
		"garbage":         func(x *dul.Association) error { return x.Send(1, []byte("garbage!"), nil) },
		"too long":        func(x *dul.Association) error { return x.Send(1, make([]byte, commandBytesMax+1), nil) },
		"unexpected data": func(x *dul.Association) error { return x.Send(1, good, strings.NewReader("data")) },
		"response to nobody": func(x *dul.Association) error {
			return x.Send(1, (&Command{Field: CFindRQ | responseBit}).Append(nil), nil)
		},
		"command for data": func(x *dul.Association) error {
			c := &Command{Field: CStoreRQ, AffectedClass: VerificationClass, AffectedInstance: "1.2", HasData: true}
			return errors.Join(x.Send(1, c.Append(nil), nil), x.Send(1, good, nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := s.dial(t, s.dialConfig())
			if err := send(c.Association()); err != nil {
				t.Fatal(err)
			}
			for {
				_, err := c.conn.Read()
				if err == nil {
					continue // an answer to the first part
				}
				var abort *dul.AbortError
				if !errors.As(err, &abort) || !abort.Remote {
					t.Errorf("got %v, want the server's abort", err)
				}
				break
			}
		})
	}
}

// Behaviour 18.
func TestBehaviour18Echoed(t *testing.T) {
	a := &archive{storing: func(context.Context, *StoreRequest) StoreResponse {
		return StoreResponse{Status: StatusMismatch, ErrorComment: strings.Repeat("ü", 60), OffendingElements: []dicom.Tag{dicom.SOPInstanceUID}}
	}}
	s := start(t, a)
	c := s.dial(t, s.dialConfig())
	cmd := &Command{Field: CStoreRQ, MessageID: 5, AffectedClass: ctStorage, AffectedInstance: "1.2.3.4"}
	if err := c.conn.Write(3, cmd, strings.NewReader(strings.Repeat("unread", 100_000))); err != nil {
		t.Fatal(err)
	}
	m, err := c.conn.Read()
	if err != nil {
		t.Fatal(err)
	}
	got := m.Command
	if got.AffectedClass != ctStorage || got.AffectedInstance != "1.2.3.4" || got.RespondedTo != 5 || got.Status != StatusMismatch {
		t.Errorf("got %+v", got)
	}
	if got.ErrorComment != strings.Repeat("ü", 32) || !reflect.DeepEqual(got.OffendingElements, []uint32{uint32(dicom.SOPInstanceUID)}) {
		t.Errorf("got comment %q, elements %x", got.ErrorComment, got.OffendingElements)
	}
	if err := c.Echo(t.Context()); err != nil { // the unread data set was drained
		t.Error(err)
	}
}

// Behaviour 19.
func TestBehaviour19RefusedByTheProtocol(t *testing.T) {
	s := start(t, &archive{})
	for name, c := range map[string]struct {
		cmd  Command
		data string
		want uint16
	}{
		"other class":   {Command{Field: CStoreRQ, AffectedClass: mrStorage, AffectedInstance: "1.2"}, "data", StatusClassNotSupported},
		"no instance":   {Command{Field: CStoreRQ, AffectedClass: ctStorage}, "data", StatusInvalidInstance},
		"no data set":   {Command{Field: CStoreRQ, AffectedClass: ctStorage, AffectedInstance: "1.2"}, "", StatusCannotUnderstand},
		"no such field": {Command{Field: 0x0777}, "", StatusUnrecognized},
		"find on store": {Command{Field: CFindRQ, AffectedClass: StudyRootFind}, "data", StatusClassNotSupported},
		"n-get":         {Command{Field: NGetRQ, RequestedClass: ctStorage, RequestedInstance: "1.2"}, "", StatusClassNotSupported},
		"n-get no uid":  {Command{Field: NGetRQ, RequestedClass: ctStorage}, "", StatusInvalidInstance},
	} {
		t.Run(name, func(t *testing.T) {
			client := s.dial(t, s.dialConfig())
			c.cmd.MessageID = 3
			var data io.Reader
			if c.data != "" {
				data = strings.NewReader(c.data)
			}
			if err := client.conn.Write(3, &c.cmd, data); err != nil {
				t.Fatal(err)
			}
			m, err := client.conn.Read()
			if err != nil || m.Command.Status != c.want || m.Command.Field != c.cmd.Field|responseBit || m.Command.RespondedTo != 3 {
				t.Fatalf("got %+v, %v, want status %04X", m, err, c.want)
			}
			if err := client.Echo(t.Context()); err != nil {
				t.Errorf("the association did not survive: %v", err)
			}
		})
	}
}

// Behaviour 19.
func TestBehaviour19StatusReachesTheSender(t *testing.T) {
	for _, status := range []uint16{0, 0x0111, 0x0124, 0xA700, 0xA900, 0xB000, 0xB006, 0xB007, 0xC123} {
		s := start(t, &archive{storing: func(context.Context, *StoreRequest) StoreResponse { return StoreResponse{Status: status} }})
		c := s.dial(t, s.dialConfig())
		res, err := c.Store(t.Context(), StoreArgs{SOPClass: ctStorage, SOPInstance: "1.2", Syntax: ExplicitLittleEndian, Data: strings.NewReader("x")})
		if err != nil || res.Status != status {
			t.Errorf("got %04X, %v, want %04X", res.Status, err, status)
		}
	}
}

// Success comes only after the handler returned: what it waits for is durable.
// Behaviour 20.
func TestBehaviour20ResponseAfterHandler(t *testing.T) {
	release := make(chan struct{})
	s := start(t, &archive{storing: func(_ context.Context, r *StoreRequest) StoreResponse {
		io.Copy(io.Discard, r.Data)
		<-release
		return StoreResponse{}
	}})
	c := s.dial(t, s.dialConfig())
	answered := make(chan error, 1)
	go func() {
		_, err := c.Store(t.Context(), StoreArgs{SOPClass: ctStorage, SOPInstance: "1.2", Syntax: ExplicitLittleEndian, Data: strings.NewReader("x")})
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Fatalf("answered before the handler returned: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// A data set cut short is an error to the handler, and no response goes out.
// Behaviour 9.
func TestBehaviour09CutStore(t *testing.T) {
	for name, cut := range map[string]func(*Client, net.Conn){
		"abort": func(c *Client, _ net.Conn) { c.Abort() },
		"close": func(_ *Client, conn net.Conn) { conn.Close() },
		"reset": func(_ *Client, conn net.Conn) { conn.(*net.TCPConn).SetLinger(0); conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan error, 1)
			s := start(t, &archive{storing: func(_ context.Context, r *StoreRequest) StoreResponse {
				_, err := io.ReadAll(r.Data)
				got <- err
				return StoreResponse{}
			}})
			conn, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			c, err := Dial(t.Context(), conn, s.dialConfig())
			if err != nil {
				t.Fatal(err)
			}
			src, feed := io.Pipe()
			sent := make(chan error, 1)
			go func() {
				_, err := c.Store(t.Context(), StoreArgs{SOPClass: ctStorage, SOPInstance: "1.2", Syntax: ExplicitLittleEndian, Data: src})
				sent <- err
			}()
			feed.Write(make([]byte, 300_000))
			cut(c, conn)
			feed.Write(make([]byte, 10)) // lets the sender notice
			feed.CloseWithError(io.ErrUnexpectedEOF)
			if err := <-got; err == nil || errors.Is(err, io.EOF) {
				t.Errorf("handler read %v, want an error other than io.EOF", err)
			}
			if err := <-sent; err == nil {
				t.Error("the sender heard of success")
			}
			conn.Close()
			c.Close()
			wait(t, "the broken store to be counted", func() bool { return s.Stats().StoresBroken.Load() == 1 })
		})
	}
}

// Behaviour 28.
func TestBehaviour28OffendingElement(t *testing.T) {
	s := start(t, &archive{finding: func(_ context.Context, r *FindRequest, _ func(*dicom.Dataset, uint16) error) Result {
		if r.Identifier.String(dicom.QueryRetrieveLevel) != "STUDY" {
			return Result{Status: StatusMismatch, OffendingElements: []dicom.Tag{dicom.QueryRetrieveLevel}, ErrorComment: "unknown level"}
		}
		return Result{}
	}})
	c := s.dial(t, s.dialConfig())
	var status *StatusError
	for _, err := range c.Find(t.Context(), QueryArgs{SOPClass: StudyRootFind, Identifier: identifier("BONE", "")}) {
		errors.As(err, &status)
	}
	if status == nil || status.Status != StatusMismatch || !slices.Equal(status.OffendingElements, []dicom.Tag{dicom.QueryRetrieveLevel}) {
		t.Errorf("got %+v", status)
	}
	for _, err := range c.Find(t.Context(), QueryArgs{SOPClass: StudyRootFind, Identifier: identifier("STUDY", "")}) {
		t.Errorf("got %v", err)
	}
}

// Behaviour 31.
func TestBehaviour31Cancel(t *testing.T) {
	var cause error
	var returned sync.WaitGroup
	returned.Add(1)
	s := start(t, &archive{finding: func(ctx context.Context, _ *FindRequest, yield func(*dicom.Dataset, uint16) error) Result {
		defer returned.Done()
		for { // endless, save for the cancel
			if err := yield(identifier("STUDY", "1.2"), StatusPending); err != nil {
				cause = err
				return Result{Status: StatusProcessingFailure}
			}
		}
	}})
	c := s.dial(t, s.dialConfig())
	id, _ := identifier("STUDY", "").Encode(nil, ExplicitLittleEndian)
	if err := c.conn.Write(5, &Command{Field: CFindRQ, MessageID: 77, AffectedClass: StudyRootFind}, bytes.NewReader(id)); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		m, err := c.conn.Read()
		if err != nil {
			t.Fatal(err)
		}
		if n == 3 {
			c.conn.Write(5, &Command{Field: CCancelRQ, RespondedTo: 76}, nil) // nobody's
			c.conn.Write(5, &Command{Field: CCancelRQ, RespondedTo: 77}, nil)
		}
		if m.Command.Status == StatusCancel {
			break
		}
		if m.Command.Status != StatusPending {
			t.Fatalf("status %04X", m.Command.Status)
		}
	}
	returned.Wait()
	if !errors.Is(cause, ErrCancelled) {
		t.Errorf("the handler saw %v", cause)
	}
	c.conn.Write(5, &Command{Field: CCancelRQ, RespondedTo: 77}, nil) // too late: no answer
	if err := c.Echo(t.Context()); err != nil {
		t.Error(err)
	}

	t.Run("leaving the loop", func(t *testing.T) {
		returned.Add(1)
		n := 0
		for _, err := range c.Find(t.Context(), QueryArgs{SOPClass: StudyRootFind, Identifier: identifier("STUDY", "")}) {
			if err != nil {
				t.Fatal(err)
			}
			if n++; n == 10 {
				break
			}
		}
		returned.Wait()
		if err := c.Echo(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("context", func(t *testing.T) {
		returned.Add(1)
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		var last error
		for _, err := range c.Find(ctx, QueryArgs{SOPClass: StudyRootFind, Identifier: identifier("STUDY", "")}) {
			if n++; n == 10 {
				cancel()
			}
			last = err
		}
		cancel()
		if !errors.Is(last, context.Canceled) {
			t.Errorf("got %v", last)
		}
		if err := c.Echo(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Behaviour 33.
func TestBehaviour33Move(t *testing.T) {
	dest := &archive{}
	ds := start(t, dest)
	a := &archive{destination: func(ae string) (string, bool) { return ds.addr, ae == "DEST" }}
	for i := range 3 {
		a.objects = append(a.objects, object{ctStorage, uidOf(i), ExplicitLittleEndian, image(t, uidOf(i), 2048), nil})
	}
	a.objects = append(a.objects, object{mrStorage, "1.2.3.9", ExplicitLittleEndian, []byte("x"), nil}) // no context for it
	s := start(t, a)
	c := s.dial(t, s.dialConfig())
	var pendings []Response
	res, err := c.Move(t.Context(), QueryArgs{SOPClass: StudyRootMove, Identifier: identifier("STUDY", ""), Destination: "DEST"}, func(r Response) bool {
		pendings = append(pendings, r)
		return true
	})
	if err != nil || res.Status != StatusCoerced || res.Counters != (Counters{0, 3, 1, 0}) || !slices.Equal(res.FailedInstances, []string{"1.2.3.9"}) {
		t.Errorf("got %+v, %v", res, err)
	}
	if len(pendings) != 3 || pendings[0].Counters != (Counters{3, 1, 0, 0}) || pendings[0].Status != StatusPending {
		t.Errorf("pending responses: %+v", pendings)
	}
	for _, o := range dest.list() {
		if o.from.MoveOriginator != "TESTSCU" || o.from.MoveOriginatorMessageID == 0 {
			t.Errorf("sub-operation names originator %q, %d", o.from.MoveOriginator, o.from.MoveOriginatorMessageID)
		}
	}
	if res, err = c.Move(t.Context(), QueryArgs{SOPClass: StudyRootMove, Identifier: identifier("STUDY", ""), Destination: "NOBODY"}, nil); err != nil || res.Status != StatusUnknownDestination {
		t.Errorf("unknown destination: got %+v, %v", res, err)
	}
}

// Pending responses may come from a timer while the handler works.
// Behaviour 34.
func TestBehaviour34PendingFromTimers(t *testing.T) {
	s := start(t, &archive{moving: func(ctx context.Context, _ *MoveRequest, p *Progress) Result {
		var timers sync.WaitGroup
		for range 4 {
			timers.Go(func() {
				for i := range 25 {
					if err := p.Pending(Counters{Remaining: i}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		timers.Wait()
		return Result{Counters: &Counters{Completed: 1}}
	}})
	c := s.dial(t, s.dialConfig())
	n := 0
	res, err := c.Move(t.Context(), QueryArgs{SOPClass: StudyRootMove, Identifier: identifier("STUDY", "")}, func(Response) bool { n++; return true })
	if err != nil || res.Counters.Completed != 1 || n != 100 {
		t.Errorf("got %+v, %v after %d pending responses", res, err, n)
	}
}

func getConfig(s *service) ClientConfig {
	cfg := s.dialConfig(StudyRootGet, ctStorage, VerificationClass)
	cfg.Association.Roles = []dul.Role{{SOPClass: ctStorage, SCU: false, SCP: true}}
	return cfg
}

// C-GET stores on the same association, in the
// stored syntax, and all have arrived when the final response does.
// Behaviours 13, 35, 37.
func TestBehaviour35Get(t *testing.T) {
	a := &archive{}
	for i := range 4 {
		a.objects = append(a.objects, object{ctStorage, uidOf(i), ExplicitLittleEndian, image(t, uidOf(i), 300<<10), nil})
	}
	a.objects = append(a.objects, object{ctStorage, "1.2.8", jpegLS, []byte("x"), nil}, object{mrStorage, "1.2.9", ExplicitLittleEndian, []byte("x"), nil})
	s := start(t, a)
	c := s.dial(t, getConfig(s))
	got := map[string][]byte{}
	res, err := c.Get(t.Context(), QueryArgs{SOPClass: StudyRootGet, Identifier: identifier("STUDY", "")},
		func(_ context.Context, r *StoreRequest) StoreResponse {
			if r.Syntax != ExplicitLittleEndian {
				t.Errorf("syntax %s", r.Syntax)
			}
			b, err := io.ReadAll(r.Data)
			if err != nil {
				t.Error(err)
			}
			got[r.SOPInstance] = b
			return StoreResponse{}
		}, nil)
	if err != nil || res.Status != StatusCoerced || res.Counters.Completed != 4 || !slices.Equal(res.FailedInstances, []string{"1.2.8", "1.2.9"}) {
		t.Errorf("got %+v, %v", res, err)
	}
	for _, o := range a.objects[:4] {
		if !bytes.Equal(got[o.uid], o.data) {
			t.Errorf("%s differs", o.uid)
		}
	}
	if err := c.Echo(t.Context()); err != nil {
		t.Error(err)
	}
	t.Run("no role", func(t *testing.T) {
		c := s.dial(t, s.dialConfig(StudyRootGet, ctStorage))
		res, err := c.Get(t.Context(), QueryArgs{SOPClass: StudyRootGet, Identifier: identifier("STUDY", "")}, nil, nil)
		if err != nil || res.Status != StatusSubOperations || res.Counters.Failed != 6 {
			t.Errorf("got %+v, %v", res, err)
		}
	})
	t.Run("cancel", func(t *testing.T) {
		c := s.dial(t, getConfig(s))
		n := 0
		res, err := c.Get(t.Context(), QueryArgs{SOPClass: StudyRootGet, Identifier: identifier("STUDY", "")},
			func(_ context.Context, r *StoreRequest) StoreResponse { n++; return StoreResponse{} },
			func(Response) bool { return false })
		if err != nil || res.Status != StatusCancel && res.Counters.Completed != 4 {
			t.Errorf("got %+v, %v after %d", res, err, n)
		}
		if err := c.Echo(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("the archive's bytes fail", func(t *testing.T) {
		s := start(t, &archive{getting: func(_ context.Context, _ *GetRequest, g *Getter) Result {
			_, err := g.Store(StoreArgs{SOPClass: ctStorage, SOPInstance: "1.2", Syntax: ExplicitLittleEndian, From: broken{}})
			if err == nil {
				t.Error("no error")
			}
			return Result{Status: StatusSubOperations}
		}})
		c := s.dial(t, getConfig(s))
		_, err := c.Get(t.Context(), QueryArgs{SOPClass: StudyRootGet, Identifier: identifier("STUDY", "")},
			func(_ context.Context, r *StoreRequest) StoreResponse {
				if _, err := io.ReadAll(r.Data); err == nil {
					t.Error("half an object looks whole")
				}
				return StoreResponse{Status: StatusOutOfResources}
			}, nil)
		if err == nil {
			t.Error("Get succeeded")
		}
	})
}

// broken is an object that fails its check near the end.
type broken struct{}

func (broken) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(make([]byte, 500_000))
	if err != nil {
		return int64(n), err
	}
	return int64(n), errors.New("digest differs")
}

// 128 contexts in one association, each usable in its own syntax.
// Behaviour 36.
func TestBehaviour36AllContexts(t *testing.T) {
	a := &archive{}
	s := start(t, a)
	cfg := s.dialConfig()
	cfg.Association.Contexts = nil
	for i := range 128 {
		syntax := ExplicitLittleEndian
		if i >= 64 {
			syntax = jpegLS
		}
		cfg.Association.Contexts = append(cfg.Association.Contexts, dul.ProposedContext{ID: byte(2*i + 1), AbstractSyntax: ctStorage, TransferSyntaxes: []string{syntax}})
	}
	c := s.dial(t, cfg)
	for _, syntax := range []string{ExplicitLittleEndian, jpegLS} {
		if _, err := c.Store(t.Context(), StoreArgs{SOPClass: ctStorage, SOPInstance: "1.2", Syntax: syntax, Data: strings.NewReader(syntax)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range a.list() {
		if o.syntax != string(o.data) {
			t.Errorf("got %q as %s", o.data, o.syntax)
		}
	}
	if _, err := c.Store(t.Context(), StoreArgs{SOPClass: mrStorage, SOPInstance: "1.2", Syntax: jpegLS, Data: strings.NewReader("")}); !errors.Is(err, dul.ErrContext) {
		t.Errorf("missing context: got %v", err)
	}
}

// Storage commitment: N-ACTION, then N-EVENT-REPORT on the same association.
func TestBehaviour38EventReport(t *testing.T) {
	var s *service
	reported := make(chan error, 1)
	a := &archive{notifying: func(ctx context.Context, r *NRequest) NResponse {
		if r.Field != NActionRQ || r.ActionType != 1 || r.SOPInstance != StorageCommitmentModel || r.Dataset.String(dicom.TransactionUID) != "1.2.77" {
			t.Errorf("got %+v", r)
		}
		session := r.Session
		go func() { // ends with the report
			info := &dicom.Dataset{}
			info.SetStrings(dicom.TransactionUID, "1.2.77")
			status, err := session.EventReport(ctx, StorageCommitmentClass, StorageCommitmentModel, 1, info)
			if err == nil && status != 0 {
				err = fmt.Errorf("status %04X", status)
			}
			reported <- err
		}()
		return NResponse{}
	}}
	s = start(t, a)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cfg := s.dialConfig(StorageCommitmentClass)
	cfg.Notify = func(_ context.Context, r *NRequest) NResponse {
		if r.EventType != 1 || r.Dataset.String(dicom.TransactionUID) != "1.2.77" {
			t.Errorf("event %d", r.EventType)
		}
		return NResponse{}
	}
	c := s.dial(t, cfg)
	ask := &dicom.Dataset{}
	ask.SetStrings(dicom.TransactionUID, "1.2.77")
	res, err := c.Notify(t.Context(), NRequest{Field: NActionRQ, SOPClass: StorageCommitmentClass, SOPInstance: StorageCommitmentModel, ActionType: 1, Dataset: ask})
	if err != nil || res.Status != 0 {
		t.Fatalf("got %+v, %v", res, err)
	}
	waited := make(chan error, 1)
	go func() { waited <- c.Wait(ctx) }()
	if err := <-reported; err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-waited; err != nil {
		t.Error(err)
	}
}

// What a handler gets is the data set, byte for byte, without
// file meta information.
// Behaviour 42.
func TestBehaviour42DataSetOnly(t *testing.T) {
	a := &archive{}
	s := start(t, a)
	c := s.dial(t, s.dialConfig())
	for _, n := range []int{0, 1, 7, 131071, 1 << 20} { // odd lengths too: old senders
		data := bytes.Repeat([]byte{0xA5}, n)
		if _, err := c.Store(t.Context(), StoreArgs{SOPClass: ctStorage, SOPInstance: uidOf(n), Syntax: ExplicitLittleEndian, Data: bytes.NewReader(data)}); err != nil {
			t.Fatal(err)
		}
		if all := a.list(); !bytes.Equal(all[len(all)-1].data, data) {
			t.Errorf("%d bytes differ", n)
		}
	}
}

// The same over TLS 1.3, with the connection's state shown to
// the handler.
func TestBehaviour16TLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	seen := make(chan *tls.ConnectionState, 1)
	a := &archive{associate: func(r *dul.Request) *dul.Rejection { seen <- r.TLS; return nil }}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, ServerConfig{Handler: a}) }()
	conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: pool})
	if err != nil {
		t.Fatal(err)
	}
	c, err := Dial(t.Context(), conn, (&service{}).dialConfig())
	if err != nil {
		t.Fatal(err)
	}
	if state := <-seen; state == nil || state.Version != tls.VersionTLS13 {
		t.Errorf("handler saw %v", state)
	}
	data := image(t, uidOf(1), 512<<10)
	if _, err := c.Store(t.Context(), StoreArgs{SOPClass: ctStorage, SOPInstance: uidOf(1), Syntax: ExplicitLittleEndian, Data: bytes.NewReader(data)}); err != nil {
		t.Fatal(err)
	}
	if err := c.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if got := a.list(); len(got) != 1 || !bytes.Equal(got[0].data, data) {
		t.Error("the data set differs")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzDecodeCommand(f *testing.F) {
	for _, c := range []*Command{
		{Field: CStoreRQ, MessageID: 7, HasData: true, AffectedClass: ctStorage, AffectedInstance: "1.2.3", MoveOriginator: "A", MoveOriginatorID: 9},
		{Field: CMoveRQ | responseBit, Status: StatusPending, Counters: &Counters{1, 2, 3, 4}, ErrorComment: "x", OffendingElements: []uint32{1}},
		{Field: NActionRQ, ActionType: 1, RequestedClass: "1.2", AttributeIDs: []uint32{5}},
	} {
		f.Add(c.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeCommand(b)
		if err != nil {
			return
		}
		again, err := DecodeCommand(c.Append(nil))
		if err != nil {
			t.Fatalf("own encoding is refused: %v", err)
		}
		if again.Field != c.Field || again.HasData != c.HasData || again.AffectedInstance != c.AffectedInstance {
			t.Fatalf("own encoding reads otherwise: %+v, %+v", c, again)
		}
	})
}
