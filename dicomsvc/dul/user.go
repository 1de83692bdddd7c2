package dul

import "fmt"

// appendUser encodes the user information item in the order of PS3.7 §D.3.3.
func appendUser(dst []byte, u *UserInfo) []byte {
	return item(dst, itemUserInfo, func(b []byte) []byte {
		b = item(b, itemMaxLength, func(b []byte) []byte { return be.AppendUint32(b, u.MaxLength) })
		b = textItem(b, itemImplClass, u.ImplClassUID)
		if u.AsyncOps != nil {
			b = item(b, itemAsyncOps, func(b []byte) []byte {
				return be.AppendUint16(be.AppendUint16(b, u.AsyncOps.Invoked), u.AsyncOps.Performed)
			})
		}
		for _, r := range u.Roles {
			b = item(b, itemRole, func(b []byte) []byte {
				return append(counted(b, r.SOPClass), flag(r.SCU), flag(r.SCP))
			})
		}
		if u.ImplVersion != "" {
			b = textItem(b, itemImplVersion, u.ImplVersion[:min(16, len(u.ImplVersion))])
		}
		for _, e := range u.Extended {
			b = item(b, itemExtended, func(b []byte) []byte { return append(counted(b, e.SOPClass), e.Info...) })
		}
		for _, c := range u.CommonExtended {
			b = item(b, itemCommonExtended, func(b []byte) []byte { return appendCommon(b, c) })
		}
		if id := u.Identity; id != nil {
			b = item(b, itemIdentityRQ, func(b []byte) []byte {
				b = counted(append(b, id.Type, flag(id.ResponseRequested)), string(id.Primary))
				return counted(b, string(id.Secondary))
			})
		}
		if u.IdentityResponse != nil {
			b = item(b, itemIdentityAC, func(b []byte) []byte { return counted(b, string(u.IdentityResponse)) })
		}
		return b
	})
}

// sendable refuses an encoded association PDU with a length that does not fit
// its field.
func sendable(pdu []byte, u *UserInfo) error {
	if n := len(appendUser(nil, u)) - 4; n > itemBytesMax {
		return fmt.Errorf("user information of %d bytes is over the limit of %d", n, itemBytesMax)
	}
	if len(pdu) > pduBytesMax {
		return fmt.Errorf("PDU of %d bytes is over the limit of %d", len(pdu), pduBytesMax)
	}
	return nil
}

func appendCommon(b []byte, c CommonExtended) []byte {
	b = counted(counted(b, c.SOPClass), c.ServiceClass)
	var related []byte
	for _, r := range c.Related {
		related = counted(related, r)
	}
	return counted(b, string(related))
}

// counted appends a two-byte length and the bytes.
func counted(b []byte, s string) []byte { return append(be.AppendUint16(b, uint16(len(s))), s...) }

func flag(v bool) byte {
	if v {
		return 1
	}
	return 0
}

// decodeUser decodes a user information item. Unknown sub-items are skipped
// (PS3.8 §9.3.1).
func decodeUser(b []byte) (UserInfo, error) {
	var u UserInfo
	it := items{rest: b}
	for n := 0; it.next(); n++ {
		if n == subItemsMax {
			return u, invalid("more than %d user information items", subItemsMax)
		}
		if err := decodeUserItem(&u, it.typ, it.val); err != nil {
			return u, err
		}
	}
	return u, it.err
}

func decodeUserItem(u *UserInfo, typ byte, val []byte) (err error) {
	f := fields{rest: val}
	switch typ {
	case itemMaxLength:
		u.MaxLength = f.u32()
	case itemImplClass:
		u.ImplClassUID, err = uid(val)
	case itemAsyncOps:
		u.AsyncOps = &AsyncOps{Invoked: f.u16(), Performed: f.u16()}
	case itemRole:
		r := Role{SOPClass: f.uid()}
		r.SCU, r.SCP = f.u8() == 1, f.u8() == 1
		u.Roles = append(u.Roles, r)
	case itemImplVersion:
		u.ImplVersion = title(val[:min(16, len(val))])
	case itemExtended:
		e := ExtendedNegotiation{SOPClass: f.uid()}
		e.Info = append([]byte(nil), f.rest...)
		u.Extended = append(u.Extended, e)
	case itemCommonExtended:
		c := CommonExtended{SOPClass: f.uid(), ServiceClass: f.uid()}
		related := fields{rest: f.bytes()}
		for f.err == nil && related.err == nil && len(related.rest) > 0 {
			c.Related = append(c.Related, related.uid())
		}
		if related.err != nil {
			return related.err
		}
		u.CommonExtended = append(u.CommonExtended, c)
	case itemIdentityRQ:
		id := &UserIdentity{Type: f.u8(), ResponseRequested: f.u8() == 1}
		id.Primary = append([]byte(nil), f.bytes()...)
		id.Secondary = append([]byte(nil), f.bytes()...)
		if len(id.Primary) > identityBytesMax || len(id.Secondary) > identityBytesMax {
			return invalid("user identity longer than %d bytes", identityBytesMax)
		}
		u.Identity = id
	case itemIdentityAC:
		u.IdentityResponse = append([]byte{}, f.bytes()...)
	}
	if err != nil {
		return err
	}
	return f.err
}

// fields reads fixed and counted fields; after a short read err is set and
// everything is zero.
type fields struct {
	rest []byte
	err  error
}

func (f *fields) take(n int) []byte {
	if f.err != nil || n > len(f.rest) {
		if f.err == nil {
			f.err = invalid("field of %d bytes in %d", n, len(f.rest))
		}
		return nil
	}
	b := f.rest[:n]
	f.rest = f.rest[n:]
	return b
}

func (f *fields) u8() byte {
	if b := f.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (f *fields) u16() uint16 {
	if b := f.take(2); b != nil {
		return be.Uint16(b)
	}
	return 0
}

func (f *fields) u32() uint32 {
	if b := f.take(4); b != nil {
		return be.Uint32(b)
	}
	return 0
}

func (f *fields) bytes() []byte { return f.take(int(f.u16())) }

func (f *fields) uid() string {
	s, err := uid(f.bytes())
	if err != nil && f.err == nil {
		f.err = err
	}
	return s
}
