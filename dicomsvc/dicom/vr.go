package dicom

// VR is a value representation: its two letters, the first in the high byte (PS3.5 6.2).
type VR uint16

// The 34 value representations of PS3.5 Table 6.2-1.
const (
	AE VR = 'A'<<8 | 'E'
	AS VR = 'A'<<8 | 'S'
	AT VR = 'A'<<8 | 'T'
	CS VR = 'C'<<8 | 'S'
	DA VR = 'D'<<8 | 'A'
	DS VR = 'D'<<8 | 'S'
	DT VR = 'D'<<8 | 'T'
	FD VR = 'F'<<8 | 'D'
	FL VR = 'F'<<8 | 'L'
	IS VR = 'I'<<8 | 'S'
	LO VR = 'L'<<8 | 'O'
	LT VR = 'L'<<8 | 'T'
	OB VR = 'O'<<8 | 'B'
	OD VR = 'O'<<8 | 'D'
	OF VR = 'O'<<8 | 'F'
	OL VR = 'O'<<8 | 'L'
	OV VR = 'O'<<8 | 'V'
	OW VR = 'O'<<8 | 'W'
	PN VR = 'P'<<8 | 'N'
	SH VR = 'S'<<8 | 'H'
	SL VR = 'S'<<8 | 'L'
	SQ VR = 'S'<<8 | 'Q'
	SS VR = 'S'<<8 | 'S'
	ST VR = 'S'<<8 | 'T'
	SV VR = 'S'<<8 | 'V'
	TM VR = 'T'<<8 | 'M'
	UC VR = 'U'<<8 | 'C'
	UI VR = 'U'<<8 | 'I'
	UL VR = 'U'<<8 | 'L'
	UN VR = 'U'<<8 | 'N'
	UR VR = 'U'<<8 | 'R'
	US VR = 'U'<<8 | 'S'
	UT VR = 'U'<<8 | 'T'
	UV VR = 'U'<<8 | 'V'

	vrNone VR = 0
)

// String returns the two letters.
func (v VR) String() string { return string([]byte{byte(v >> 8), byte(v)}) }

// ParseVR returns the value representation written as s, or false when it is none of the 34.
func ParseVR(s string) (VR, bool) {
	if len(s) != 2 {
		return 0, false
	}
	v := VR(s[0])<<8 | VR(s[1])
	return v, v.known()
}

func (v VR) known() bool {
	switch v {
	case AE, AS, AT, CS, DA, DS, DT, FD, FL, IS, LO, LT, OB, OD, OF, OL, OV, OW, PN, SH, SL, SQ, SS, ST, SV, TM, UC, UI, UL, UN, UR, US, UT, UV:
		return true
	}
	return false
}

// long reports whether Explicit VR encodes the length in 32 bits after two reserved bytes (PS3.5 7.1.2, Table 7.1-1).
func (v VR) long() bool {
	switch v {
	case OB, OD, OF, OL, OV, OW, SQ, SV, UC, UN, UR, UT, UV:
		return true
	}
	return false
}

// unit returns the width in bytes of the numbers in a value, 1 where bytes have no order (PS3.5 7.3).
func (v VR) unit() int {
	switch v {
	case US, SS, OW, AT:
		return 2
	case UL, SL, FL, OF, OL:
		return 4
	case FD, OD, OV, SV, UV:
		return 8
	}
	return 1
}

// IsText reports whether values are in the character sets of Specific Character Set (PS3.5 6.1.2.3).
func (v VR) IsText() bool {
	switch v {
	case LO, LT, PN, SH, ST, UC, UT:
		return true
	}
	return false
}

// IsString reports whether values are strings of characters.
func (v VR) IsString() bool {
	switch v {
	case AE, AS, CS, DA, DS, DT, IS, TM, UI, UR:
		return true
	}
	return v.IsText()
}

// IsBinary reports whether values are streams of bytes or words that DICOM JSON writes as InlineBinary or BulkDataURI.
func (v VR) IsBinary() bool {
	switch v {
	case OB, OD, OF, OL, OV, OW, UN:
		return true
	}
	return false
}

// single reports whether a backslash is data and no separator of values (PS3.5 6.4).
func (v VR) single() bool { return v == LT || v == ST || v == UT || v == UR }

// pad returns the byte that makes a value even (PS3.5 6.2).
func (v VR) pad() byte {
	if v.IsString() && v != UI {
		return ' '
	}
	return 0
}

// Width returns how many bytes of a value change places between Big and Little Endian, 1 where bytes have no order (PS3.5 7.3).
func (v VR) Width() int { return v.unit() }

// LongLength reports whether Explicit VR encodes the length in 32 bits (PS3.5 Table 7.1-1); values of the others end at 64 KiB.
func (v VR) LongLength() bool { return v.long() }

// Pad returns the byte that makes a value even (PS3.5 6.2).
func (v VR) Pad() byte { return v.pad() }
