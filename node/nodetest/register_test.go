package nodetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"osteon/dicomsvc"
	"osteon/node"
	"osteon/raft/catalog"
	"osteon/raft/ring"
)

// registers are settings of the catalog that one client each sets, through any node, and others read in agreement with
// the ring (ReadIndex). What they see has to be linearizable.
type registers struct {
	load *Workload

	mu  sync.Mutex
	ops []porcupine.Operation
}

// access is the input of one operation.
type access struct {
	key   string
	set   bool
	value string
}

const registerKeys = 2

// registerModel is one register for each key.
var registerModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, o := range history {
			byKey[o.Input.(access).key] = append(byKey[o.Input.(access).key], o)
		}
		var out [][]porcupine.Operation
		for _, ops := range byKey {
			out = append(out, ops)
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		if in := input.(access); in.set {
			return true, in.value
		}
		return state == output, state
	},
	DescribeOperation: func(input, output any) string {
		if in := input.(access); in.set {
			return "set " + in.value
		}
		return fmt.Sprintf("get %v", output)
	},
}

// run sets and reads until ctx ends.
func (r *registers) run(ctx context.Context) {
	var clients sync.WaitGroup
	for k := range registerKeys {
		key := fmt.Sprintf("test/%d", k)
		clients.Go(func() {
			for i := 1; pause(ctx, time.Duration(r.load.draw(int(3*time.Second)))); i++ {
				r.set(k, key, fmt.Sprint(i))
			}
		})
		clients.Go(func() {
			for pause(ctx, time.Duration(r.load.draw(int(2*time.Second)))) {
				r.get(registerKeys+k, key)
			}
		})
	}
	clients.Wait()
}

func (r *registers) set(client int, key, value string) {
	began := r.load.history.now()
	_, _, same, err := r.at(func(ctx context.Context, n *node.Node) (string, error) {
		results, _, err := n.Catalog().Do(ctx, dicomsvc.Principal{Kind: dicomsvc.PrincipalSystem}, catalog.PutSetting{Key: key, Value: []byte(value)})
		if err != nil {
			return "", err
		}
		return "", results[0].Err()
	})
	ended := int64(r.load.history.now())
	switch {
	case errors.Is(err, errNobody), same && errors.Is(err, ring.ErrNoQuorum) && !errors.Is(err, ring.ErrUnknownOutcome):
		return // nothing was proposed
	case err != nil || !same:
		ended = math.MaxInt64 // it may take effect at any time, or never
	}
	r.note(porcupine.Operation{ClientId: client, Input: access{key, true, value}, Call: int64(began), Return: ended})
}

func (r *registers) get(client int, key string) {
	began := r.load.history.now()
	name, value, same, err := r.at(func(ctx context.Context, n *node.Node) (string, error) {
		index, err := n.Ring().ReadIndex(ctx)
		if err == nil {
			err = n.Catalog().WaitApplied(ctx, index)
		}
		if err != nil {
			return "", err
		}
		value, err := n.Catalog().Setting(key)
		if errors.Is(err, catalog.ErrNotFound) {
			err = nil
		}
		return string(value), err
	})
	if err != nil || !same {
		return
	}
	r.load.history.add(began, name, "get "+key, value)
	r.note(porcupine.Operation{
		ClientId: client, Input: access{key, false, ""}, Output: value, Call: int64(began), Return: int64(r.load.history.now()),
	})
}

var errNobody = errors.New("no node runs")

// at does f at some node, and reports whether that node is still the same afterwards.
func (r *registers) at(f func(context.Context, *node.Node) (string, error)) (name, value string, same bool, err error) {
	at := r.load.anyNode()
	if at == nil {
		return "", "", true, errNobody
	}
	n, generation := at.Current()
	if n == nil {
		return "", "", true, errNobody
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	value, err = f(ctx, n)
	_, now := at.Current()
	return at.Name, value, now == generation, err
}

func (r *registers) note(o porcupine.Operation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, o)
}

// check returns an error when no order of the operations explains what was seen.
func (r *registers) check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if porcupine.CheckOperations(registerModel, r.ops) {
		return nil
	}
	text := ""
	for _, o := range r.ops {
		text += fmt.Sprintf("\n  %10.3f - %10.3f %s %s", time.Duration(o.Call).Seconds(), time.Duration(o.Return).Seconds(),
			o.Input.(access).key, registerModel.DescribeOperation(o.Input, o.Output))
	}
	return fmt.Errorf("settings are not linearizable:%s", text)
}
