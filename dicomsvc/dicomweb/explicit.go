package dicomweb

import (
	"errors"
	"fmt"
	"io"
	"math"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// explicitable tells whether a data set in the syntax can be sent in Explicit VR Little Endian without
// touching a pixel: it is in that syntax, or its pixel data are native.
func explicitable(syntax string) bool {
	switch syntax {
	case dicom.ExplicitVRLittleEndian, dicom.ImplicitVRLittleEndian, dicom.ExplicitVRBigEndian, dicom.DeflatedExplicitVRLittleEndian:
		return true
	}
	return false
}

// rewrittenSet is a data set in Explicit VR Little Endian: encoded runs with bulk values between them.
type rewrittenSet struct {
	runs   []run
	size   int64
	server *Server
	obj    object
}

// run is encoded bytes and the bulk value that follows them, if any, with its pad byte.
type run struct {
	encoded []byte
	bulk    *dicom.Bulk
	width   int // of the words whose bytes are swapped; 1: none
	pad     bool
}

// explicit prepares obj, stored in a native syntax, to be sent in Explicit VR Little Endian
// (PS3.18 §8.7.3: neither Implicit VR nor Big Endian is used on the web). The stored object is read to
// its end first, with its digest checked, so that nothing is sent of one that fails. The header is held
// in memory, bulk values are not.
func (s *Server) explicit(obj object, syntax string) (*rewrittenSet, error) {
	set, err := scanWhole(obj, syntax)
	if err != nil {
		return nil, err
	}
	out := &rewrittenSet{server: s, obj: obj}
	var encoded []byte
	for _, el := range set.Elements {
		if el.Bulk == nil {
			one := dicom.Dataset{Elements: []dicom.Element{el}}
			if encoded, err = one.Encode(encoded, dicom.ExplicitVRLittleEndian); err != nil {
				return nil, fmt.Errorf("%w: write as Explicit VR Little Endian: %w; ask for transfer-syntax=*", dicomsvc.ErrUnsupported, err)
			}
			continue
		}
		r, err := bulkRun(encoded, el, syntax)
		if err != nil {
			return nil, err
		}
		out.add(r)
		encoded = nil
	}
	out.add(run{encoded: encoded})
	return out, nil
}

// scanWhole reads obj through and returns its data set.
func scanWhole(obj object, syntax string) (*dicom.Dataset, error) {
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() { // ends when obj was read or the pipe is closed; done is received below
		_, err := obj.WriteTo(pw)
		pw.CloseWithError(err)
		done <- err
	}()
	scanner := dicom.NewScanner(pr, syntax, dicom.Limits{})
	err := scanner.Rest()
	if err == nil {
		_, err = io.Copy(io.Discard, pr)
	}
	pr.Close()
	if read := <-done; read != nil && !errors.Is(read, io.ErrClosedPipe) {
		return nil, read
	}
	if err != nil {
		return nil, fmt.Errorf("%w: read the stored data set: %w", dicomsvc.ErrCorrupt, err)
	}
	return scanner.Dataset(), nil
}

// bulkRun is the header of a bulk element, behind what is encoded already, and its value.
func bulkRun(encoded []byte, el dicom.Element, syntax string) (run, error) {
	if el.Bulk.Encapsulated || el.Bulk.Length < 0 || el.Bulk.Length > math.MaxUint32-2 {
		return run{}, fmt.Errorf("%w: element %v cannot be sent as Explicit VR Little Endian; ask for transfer-syntax=*", dicomsvc.ErrUnsupported, el.Tag)
	}
	r := run{bulk: el.Bulk, width: 1, pad: el.Bulk.Length%2 == 1}
	vr := el.VR
	if dicom.SyntaxOf(syntax).BigEndian {
		r.width = wordWidth(vr)
	}
	length := el.Bulk.Length + el.Bulk.Length%2
	if length > math.MaxUint16 && !longLength(vr) {
		vr = dicom.UN // PS3.5 §6.2.2
	}
	r.encoded = dicom.AppendElementHeader(encoded, true, false, el.Tag, vr, uint32(length))
	return r, nil
}

// longLength tells whether an element of the VR has a length of 32 bits (PS3.5 Table 7.1-1).
func longLength(vr dicom.VR) bool {
	switch vr {
	case dicom.SQ, dicom.SV, dicom.UC, dicom.UR, dicom.UT, dicom.UV:
		return true
	}
	return vr.IsBinary()
}

// wordWidth is how many bytes change places between Big and Little Endian in values of the VR.
func wordWidth(vr dicom.VR) int {
	switch vr {
	case dicom.US, dicom.SS, dicom.OW, dicom.AT:
		return 2
	case dicom.UL, dicom.SL, dicom.FL, dicom.OF, dicom.OL:
		return 4
	case dicom.FD, dicom.OD, dicom.OV, dicom.SV, dicom.UV:
		return 8
	}
	return 1
}

func (x *rewrittenSet) add(r run) {
	x.runs = append(x.runs, r)
	x.size += int64(len(r.encoded))
	if r.bulk != nil {
		x.size += r.bulk.Length + r.bulk.Length%2
	}
}

// write sends the whole data set.
func (x *rewrittenSet) write(w io.Writer) error {
	for _, r := range x.runs {
		if _, err := w.Write(r.encoded); err != nil {
			return err
		}
		if r.bulk == nil {
			continue
		}
		if err := x.server.copySwapped(w, x.obj.Section(r.bulk.Offset, r.bulk.Length), r.bulk.Length, r.width); err != nil {
			return err
		}
		if r.pad {
			if _, err := w.Write([]byte{0}); err != nil {
				return err
			}
		}
	}
	return nil
}

// copySwapped copies n bytes of src to w and reverses every word of the given width on the way.
func (s *Server) copySwapped(w io.Writer, src io.Reader, n int64, width int) error {
	if width == 1 {
		return s.copyExact(w, src, n)
	}
	swap := &swapper{w: w, width: width}
	if err := s.copyExact(swap, src, n); err != nil {
		return err
	}
	return swap.flush()
}
