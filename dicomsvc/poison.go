package dicomsvc

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Poisoned is an object that made this node panic while it was stored.
type Poisoned struct {
	// Caller is the name of who sent it, an AE title for instance.
	Caller         string    `json:"caller"`
	SOPInstanceUID string    `json:"sop_instance_uid"`
	Strikes        int       `json:"strikes"`
	Last           time.Time `json:"last"`
	// Refused is set from the third time on: the object is refused before a byte of it is read.
	Refused bool `json:"refused"`
}

// poison counts the panics that objects cause. What recovers from them is the caller's affair: here they pass.
// It lasts as long as the process: a new program may read what the old one could not.
type poison struct {
	now func() time.Time

	mu      sync.Mutex
	strikes map[poisonKey]*Poisoned
}

type poisonKey struct{ caller, instance string }

func (p *poison) init(now func() time.Time) {
	p.now, p.strikes = now, map[poisonKey]*Poisoned{}
}

// watch refuses an object that has had its strikes. Otherwise survived, to be deferred, counts one more when
// the caller is panicking.
func (p *poison) watch(req PutRequest) (survived func(), err error) {
	key := poisonKey{req.Principal.Name, cmp.Or(req.ClaimedUID, req.SOPInstanceUID)}
	if key.instance == "" {
		return func() {}, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if known := p.strikes[key]; known != nil && known.Strikes >= poisonStrikes {
		known.Last = p.now()
		return nil, fmt.Errorf("put: %w", ErrPoison)
	}
	return func() {
		if v := recover(); v != nil {
			p.strike(key)
			panic(v) // the stack of the first panic is still below this one
		}
	}, nil
}

func (p *poison) strike(key poisonKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.strikes[key]
	if known == nil {
		if len(p.strikes) >= poisonMax {
			p.forget()
		}
		known = &Poisoned{Caller: key.caller, SOPInstanceUID: key.instance}
		p.strikes[key] = known
	}
	known.Strikes++
	known.Last = p.now()
	known.Refused = known.Strikes >= poisonStrikes
}

// forget drops the object that was not seen for longest; the mutex is held.
func (p *poison) forget() {
	var oldest poisonKey
	var at time.Time
	for key, known := range p.strikes {
		if at.IsZero() || known.Last.Before(at) {
			oldest, at = key, known.Last
		}
	}
	delete(p.strikes, oldest)
}

// Poison lists the objects that made this node panic while they were stored.
func (a *Archive) Poison() []Poisoned {
	p := &a.poison
	p.mu.Lock()
	defer p.mu.Unlock()
	list := []Poisoned{}
	for _, known := range p.strikes {
		list = append(list, *known)
	}
	slices.SortFunc(list, func(a, b Poisoned) int {
		return cmp.Or(cmp.Compare(a.Caller, b.Caller), cmp.Compare(a.SOPInstanceUID, b.SOPInstanceUID))
	})
	return list
}
