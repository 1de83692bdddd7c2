package dicom

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"slices"
)

const (
	preambleBytes = 128
	prefix        = "DICM"
)

// ReadPart10 reads preamble and File Meta Information (PS3.10 7.1) and returns them, the transfer syntax and a reader of the data set that follows.
//
// It takes what real files bring: no preamble, no meta information (the syntax is then guessed from the first element), group length wrong or absent,
// meta information in Implicit VR. meta is never nil. Fails with ErrNotDICOM for something else, ErrTruncated when the file ends
// inside the meta information, ErrLimit when that is too long.
func ReadPart10(r io.Reader) (meta *Dataset, syntax string, body io.Reader, err error) {
	br := bufio.NewReaderSize(r, windowBytes)
	if err := skipPreamble(br); err != nil {
		return nil, "", nil, err
	}
	meta, err = readMeta(br)
	if err != nil {
		return nil, "", nil, err
	}
	syntax = meta.String(TransferSyntaxUID)
	if syntax == "" {
		if syntax, err = sniff(br, meta.Len() > 0); err != nil {
			return nil, "", nil, err
		}
	}
	return meta, syntax, br, nil
}

// skipPreamble leaves br at the meta information, or where it would be.
func skipPreamble(br *bufio.Reader) error {
	b, err := br.Peek(preambleBytes + len(prefix))
	if len(b) == preambleBytes+len(prefix) && string(b[preambleBytes:]) == prefix {
		_, err := br.Discard(len(b))
		return err
	}
	if err != nil && err != io.EOF {
		return readError(&ParseError{What: "preamble"}, err)
	}
	if len(b) >= len(prefix) && string(b[:len(prefix)]) == prefix {
		_, err := br.Discard(len(prefix))
		return err
	}
	if len(b) == 0 {
		return &ParseError{Kind: ErrNotDICOM, What: "file is empty"}
	}
	return nil
}

// readMeta reads the elements of group 0002. The group length is believed only to find the end where the data set is deflated, whose bytes may
// look like anything.
func readMeta(br *bufio.Reader) (*Dataset, error) {
	p := parser{}
	p.src.reset(nil)
	p.start(Syntax{Explicit: true}, Limits{})
	var at, end int64
	for {
		h, raw, err := metaHeader(br)
		if err != nil || raw == 0 || end > 0 && at == end && isDeflated(p.open) {
			closeMeta(&p)
			return p.root, err
		}
		if at += int64(raw) + int64(h.length); at > metaBytesMax {
			return nil, &ParseError{Kind: ErrLimit, Tag: h.tag, Offset: at, What: "meta information is too long"}
		}
		if _, err := br.Discard(raw); err != nil {
			return nil, err
		}
		v := make([]byte, h.length)
		if _, err := io.ReadFull(br, v); err != nil {
			return nil, metaError(h.tag, err)
		}
		if h.tag == FileMetaInformationGroupLength && len(v) == 4 {
			end = at + int64(binary.LittleEndian.Uint32(v))
		}
		p.open = append(p.open, Element{Tag: h.tag, VR: h.vr, Value: v})
	}
}

func closeMeta(p *parser) {
	p.stack[0].unsorted = true
	p.closeItem(&p.stack[0])
}

func isDeflated(els []Element) bool {
	i := slices.IndexFunc(els, func(e Element) bool { return e.Tag == TransferSyntaxUID })
	return i >= 0 && SyntaxOf(trimString(string(els[i].Value))).Deflated
}

// metaHeader returns the header ahead and its size, 0 when what is ahead is not of group 0002.
func metaHeader(br *bufio.Reader) (header, int, error) {
	b, err := br.Peek(12)
	if len(b) < 8 || binary.LittleEndian.Uint16(b) != 0x0002 {
		if err != nil && err != io.EOF {
			return header{}, 0, readError(&ParseError{What: "meta information"}, err)
		}
		return header{}, 0, nil
	}
	h := header{tag: NewTag(2, binary.LittleEndian.Uint16(b[2:])), vr: VR(b[4])<<8 | VR(b[5])}
	switch {
	case !letters(b[4], b[5]):
		// Implicit VR, or a VR so wrong that only the 16-bit length after it makes sense.
		h.vr, h.length, h.size = VROf(h.tag), binary.LittleEndian.Uint32(b[4:]), 8
		if h.length > metaBytesMax {
			h.length = uint32(binary.LittleEndian.Uint16(b[6:]))
		}
	case h.vr.long() || !h.vr.known():
		if len(b) < 12 {
			return h, 0, metaError(h.tag, io.ErrUnexpectedEOF)
		}
		h.length, h.size = binary.LittleEndian.Uint32(b[8:]), 12
	default:
		h.length, h.size = uint32(binary.LittleEndian.Uint16(b[6:])), 8
	}
	if h.length > metaBytesMax {
		return h, 0, &ParseError{Kind: ErrLimit, Tag: h.tag, What: "meta information is too long"}
	}
	return h, h.size, nil
}

func metaError(tag Tag, err error) error {
	e := &ParseError{Kind: ErrTruncated, Tag: tag, What: "meta information is cut off"}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return e
	}
	return readError(e, err)
}

// sniff guesses the transfer syntax of a data set from its first element, whose group is small in every data set that
// begins as it should. begun says that some meta information was there.
func sniff(br *bufio.Reader, begun bool) (string, error) {
	b, err := br.Peek(8)
	if len(b) < 8 {
		if err != nil && err != io.EOF {
			return "", readError(&ParseError{What: "first element"}, err)
		}
		if begun {
			return "", &ParseError{Kind: ErrTruncated, What: "file ends inside the meta information"}
		}
		return "", &ParseError{Kind: ErrNotDICOM, What: "no data set"}
	}
	vr := VR(b[4])<<8 | VR(b[5])
	little, big := binary.LittleEndian.Uint16(b), binary.BigEndian.Uint16(b)
	switch {
	case vr.known() && firstGroup(little):
		return ExplicitVRLittleEndian, nil
	case vr.known() && firstGroup(big):
		return ExplicitVRBigEndian, nil
	case firstGroup(little) && binary.LittleEndian.Uint32(b[4:]) <= headerBytesMax:
		return ImplicitVRLittleEndian, nil
	}
	return "", &ParseError{Kind: ErrNotDICOM, What: "no DICM prefix and no element at the start"}
}

func firstGroup(g uint16) bool { return g >= 0x0004 && g <= 0x0010 && g%2 == 0 }

// AppendMeta appends a preamble of zeros, the prefix and the File Meta Information (PS3.10 7.1), with an exact group length. implVersion and sourceAE
// are left out when empty.
func AppendMeta(dst []byte, classUID, instanceUID, syntax, implClass, implVersion, sourceAE string) []byte {
	dst = append(dst, make([]byte, preambleBytes)...)
	dst = append(dst, prefix...)
	dst = appendMetaElement(dst, FileMetaInformationGroupLength, UL, []byte{0, 0, 0, 0})
	start := len(dst)
	dst = appendMetaElement(dst, FileMetaInformationVersion, OB, []byte{0, 1})
	dst = appendMetaElement(dst, MediaStorageSOPClassUID, UI, []byte(classUID))
	dst = appendMetaElement(dst, MediaStorageSOPInstanceUID, UI, []byte(instanceUID))
	dst = appendMetaElement(dst, TransferSyntaxUID, UI, []byte(syntax))
	dst = appendMetaElement(dst, ImplementationClassUID, UI, []byte(implClass))
	if implVersion != "" {
		dst = appendMetaElement(dst, ImplementationVersionName, SH, []byte(implVersion))
	}
	if sourceAE != "" {
		dst = appendMetaElement(dst, SourceApplicationEntityTitle, AE, []byte(sourceAE))
	}
	binary.LittleEndian.PutUint32(dst[start-4:], uint32(len(dst)-start))
	return dst
}

func appendMetaElement(dst []byte, tag Tag, vr VR, v []byte) []byte {
	dst = AppendElementHeader(dst, true, false, tag, vr, uint32(len(v)+len(v)%2))
	dst = append(dst, v...)
	if len(v)%2 == 1 {
		dst = append(dst, vr.pad())
	}
	return dst
}
