package catalog

import (
	"osteon/erasure/place"
	"osteon/erasure/plant"
)

// node returns the record of a node, nil when there is none.
func (s *state) node(id place.NodeID) (*Node, error) {
	v, err := s.get(keyID(tableNode, id))
	if v == nil || err != nil {
		return nil, err
	}
	n, err := decodeNodeRow(v)
	if err != nil {
		return nil, s.fault(err)
	}
	return &n, nil
}

func (s *state) putNode(c PutNode) (Result, error) {
	known, err := s.node(c.Node.ID)
	if err != nil {
		return Result{}, err
	}
	if known != nil && known.State == NodeRemoved && c.Node.State != NodeRemoved {
		return refuse(CodeRaced, "the node was removed; join it under a new ID"), nil
	}
	s.set(keyID(tableNode, c.Node.ID), appendNode([]byte{rowVersion}, c.Node))
	return Result{}, nil
}

func (s *state) putToken(c PutToken) (Result, error) {
	key := keyHash(tableToken, c.Hash)
	known, err := s.get(key)
	if err != nil || known != nil {
		return Result{}, err
	}
	s.set(key, encodeTokenRow(Token{Hash: c.Hash, Site: c.Site, Created: c.Created, Expires: c.Expires}))
	return Result{}, nil
}

func (s *state) useToken(c UseToken) (Result, error) {
	key := keyHash(tableToken, c.Hash)
	v, err := s.get(key)
	if err != nil {
		return Result{}, err
	}
	if v == nil {
		return refuse(CodeUnknown, "no such token"), nil
	}
	token, err := decodeTokenRow(c.Hash, v)
	if err != nil {
		return Result{}, s.fault(err)
	}
	switch {
	case token.UsedBy == c.Node && !c.Node.IsZero():
		return Result{}, nil
	case !token.UsedBy.IsZero() && !plant.Is(plant.TokenReused):
		return refuse(CodeUsed, "the token was used by another node"), nil
	case !s.now.Before(token.Expires):
		return refuse(CodeExpired, "the token has expired; make a new one"), nil
	}
	token.UsedBy = c.Node
	s.set(key, encodeTokenRow(token))
	return Result{}, nil
}

func (s *state) putSetting(c PutSetting) Result {
	key := keyText(tableSetting, c.Key)
	if len(c.Value) == 0 {
		s.delete(key)
		return Result{}
	}
	s.set(key, append([]byte{rowVersion}, c.Value...))
	return Result{}
}

func (s *state) tombstone(c Tombstone) (Result, error) {
	key := keyHash(tableTombstone, c.UIDHash)
	known, err := s.get(key)
	if err != nil || known != nil {
		return Result{}, err
	}
	n, err := s.count(metaTombstones)
	if err != nil {
		return Result{}, err
	}
	s.setCount(metaTombstones, n+1)
	s.tombs = int(n) + 1
	s.set(key, appendTime(appendString([]byte{rowVersion, byte(c.Level)}, c.Reason), s.now))
	return Result{}, nil
}

// putBody sets or, without a body, removes a row whose body is opaque.
func (s *state) putBody(key, body []byte) Result {
	if len(body) == 0 {
		s.delete(key)
		return Result{}
	}
	known, err := s.get(key)
	if err != nil {
		return Result{}
	}
	at := s.now
	if known != nil { // a repetition keeps its time
		d := &decoder{b: known}
		d.version(rowVersion)
		if t := d.time(); string(d.b) == string(body) {
			at = t
		}
	}
	s.set(key, append(appendTime([]byte{rowVersion}, at), body...))
	return Result{}
}

// apply runs one command.
func (s *state) apply(c Command) (Result, error) {
	switch c := c.(type) {
	case Add:
		return s.add(c)
	case SealBegin:
		return s.sealBegin(c)
	case Seal:
		return s.seal(c)
	case SealAbort:
		return s.sealAbort(c)
	case ForgetEncode:
		return s.forgetEncode(c)
	case PutNode:
		return s.putNode(c)
	case PutToken:
		return s.putToken(c)
	case UseToken:
		return s.useToken(c)
	case PutSetting:
		return s.putSetting(c), s.err
	case Tombstone:
		return s.tombstone(c)
	case PutOverlay:
		return s.putBody(keyTarget(tableOverlay, c.Target, c.ID), c.Body), s.err
	case Hold:
		return s.putBody(keyTarget(tableHold, c.Target, c.ID), c.Body), s.err
	case CommitmentRequest:
		return s.putBody(keyID(tableCommitment, c.ID), c.Body), s.err
	case PutAE:
		return s.putAE(c)
	case RemoveAE:
		return s.putRegistry(keyText(tableAE, c.Title), nil)
	case PutBearer:
		return s.putBearer(c)
	case RemoveBearer:
		return s.putRegistry(keyText(tableBearer, c.Name), nil)
	}
	return Result{}, s.fault(ErrUnknownCommand)
}
