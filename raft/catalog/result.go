package catalog

import "fmt"

// ResultCode tells what became of a command.
type ResultCode uint8

// The results of commands.
const (
	CodeOK        ResultCode = iota
	CodeUnknown              // what the command names is not in the catalog
	CodeRaced                // decided otherwise already
	CodeExpired              // token: its time is over
	CodeUsed                 // token: spent by another node
	CodeInvalid              // the command contradicts itself
	CodeMalformed            // the whole batch could not be decoded; nothing of it was applied
	CodeStopped              // the catalog stopped at an entry of a newer program
)

// Result is what became of one command; every replica computes the same.
type Result struct {
	Code   ResultCode
	Detail string        // a sentence for logs and operators, without patient data; may be empty
	Items  []ItemOutcome // of an Add, one for each item
}

// Err returns nil for CodeOK, else an error that wraps ErrNotFound, ErrRaced, ErrExpired, ErrUsed,
// ErrInvalid, ErrMalformed or ErrUnknownCommand.
func (r Result) Err() error {
	sentinel := map[ResultCode]error{
		CodeOK: nil, CodeUnknown: ErrNotFound, CodeRaced: ErrRaced, CodeExpired: ErrExpired, CodeUsed: ErrUsed,
		CodeInvalid: ErrInvalid, CodeMalformed: ErrMalformed, CodeStopped: ErrUnknownCommand,
	}
	err, known := sentinel[r.Code]
	switch {
	case !known:
		return fmt.Errorf("%w: result code %d", ErrUnknownCommand, r.Code)
	case err == nil || r.Detail == "":
		return err
	}
	return fmt.Errorf("%w: %s", err, r.Detail)
}

// ItemOutcome tells what an Add did with one item.
type ItemOutcome uint8

// The outcomes of an item of Add.
const (
	OutcomeServed      ItemOutcome = iota + 1 // new, and the version served for its UID
	OutcomeFurther                            // new, kept and sealed but not served; it has a QC item
	OutcomeKnown                              // known before, and the version served
	OutcomeKnownUnused                        // known before as a further version, not served
	OutcomeRefused                            // its VersionID belongs to another UID; not kept
	OutcomeLimbo                              // its UID was erased: kept, neither served nor sealed
)

// Served reports whether queries and retrievals give this version for its UID.
func (o ItemOutcome) Served() bool { return o == OutcomeServed || o == OutcomeKnown }

// New reports whether the version was not known before.
func (o ItemOutcome) New() bool { return o == OutcomeServed || o == OutcomeFurther }

// String returns a word for logs.
func (o ItemOutcome) String() string {
	return word(int(o), "none", "served", "further", "known", "known-unused", "refused", "limbo")
}

const resultVersion = 1

// appendResults writes the results of one log entry:
//
//	version u8 | count | count x (code u8, detail, item count, items u8...)
func appendResults(b []byte, results []Result) []byte {
	b = append(b, resultVersion)
	b = appendUint(b, uint64(len(results)))
	for _, r := range results {
		b = append(b, byte(r.Code))
		b = appendString(b, r.Detail)
		b = appendUint(b, uint64(len(r.Items)))
		for _, o := range r.Items {
			b = append(b, byte(o))
		}
	}
	return b
}

// DecodeResults returns the results that Apply encoded for one log entry. Its error wraps
// ErrMalformed.
func DecodeResults(b []byte) ([]Result, error) {
	d := decoder{b: b}
	d.version(resultVersion)
	n := d.count(maxCommands)
	out := make([]Result, 0, n)
	for range n {
		r := Result{Code: ResultCode(d.byte()), Detail: d.string(maxDetailBytes)}
		items := d.take(d.count(maxItems))
		for _, o := range items {
			r.Items = append(r.Items, ItemOutcome(o))
		}
		out = append(out, r)
	}
	if err := d.err(); err != nil {
		return nil, fmt.Errorf("%w result of a log entry: %w", ErrMalformed, err)
	}
	return out, nil
}
