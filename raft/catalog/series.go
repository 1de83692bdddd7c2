package catalog

// eachVersion calls f with the versions of a series and their instance numbers, in the order of
// instance number, UID and version, until f returns false. It merges the unsealed rows with the
// instance tables and holds one decoded table of each pack at a time.
func (v *view) eachVersion(row *seriesRow, f func(l Located, number int32) bool) error {
	c, err := v.scanPrefix(keyUnsealedOf(row.study, row.uid))
	if err != nil {
		return err
	}
	defer c.close()
	sources := []source{&unsealedSource{v: v, c: c}}
	for _, parts := range byPack(row.parts) {
		sources = append(sources, &tableSource{v: v, parts: parts})
	}
	heads := make([]*seriesVersion, len(sources))
	for i, s := range sources {
		if heads[i], err = s.next(); err != nil {
			return err
		}
	}
	for {
		first := -1
		for i, h := range heads {
			if h != nil && (first < 0 || h.before(heads[first])) {
				first = i
			}
		}
		if first < 0 {
			return nil
		}
		if !f(heads[first].Located, heads[first].number) {
			return nil
		}
		if heads[first], err = sources[first].next(); err != nil {
			return err
		}
	}
}

// byPack groups parts by pack; within a pack they are in order already.
func byPack(parts []tablePart) [][]tablePart {
	var groups [][]tablePart
	for i, p := range parts {
		if i == 0 || p.seq != parts[i-1].seq {
			groups = append(groups, nil)
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], p)
	}
	return groups
}

type seriesVersion struct {
	Located
	number int32
}

func (a *seriesVersion) before(b *seriesVersion) bool {
	return compareVersions(a.number, &a.Instance, b.number, &b.Instance) < 0
}

// source yields versions of one series in order, nil at the end.
type source interface {
	next() (*seriesVersion, error)
}

type unsealedSource struct {
	v *view
	c *cursor
}

func (s *unsealedSource) next() (*seriesVersion, error) {
	if !s.c.next() {
		return nil, s.c.err
	}
	row, err := decodeVersionRow(s.c.value)
	if err != nil {
		return nil, err
	}
	return &seriesVersion{Located: s.v.marked(row.located()), number: row.number}, nil
}

// tableSource yields the versions of a series in one pack.
type tableSource struct {
	v     *view
	parts []tablePart
	rows  []sealedVersion
}

func (s *tableSource) next() (*seriesVersion, error) {
	for len(s.rows) == 0 {
		if len(s.parts) == 0 {
			return nil, nil
		}
		if err := s.load(s.parts[0]); err != nil {
			return nil, err
		}
		s.parts = s.parts[1:]
	}
	row := &s.rows[0]
	s.rows = s.rows[1:]
	if err := s.v.examine(); err != nil {
		return nil, err
	}
	return &seriesVersion{Located: row.located(), number: row.number}, nil
}

func (s *tableSource) load(p tablePart) error {
	pack, err := s.v.sealed.pack(p.seq)
	if err != nil {
		return err
	}
	t, err := s.v.sealed.table(p.seq, p.first)
	if err != nil {
		return err
	}
	s.rows = make([]sealedVersion, len(t.versions))
	for i := range t.versions {
		s.rows[i] = t.versions[i]
		s.rows[i].pack = pack.ID
	}
	return nil
}
