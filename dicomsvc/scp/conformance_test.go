package scp

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dul"
)

// TestConformanceStatement holds the tables of CONFORMANCE.md against the code's own values.
func TestConformanceStatement(t *testing.T) {
	b, err := os.ReadFile("../CONFORMANCE.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, kind := range kinds {
		row := fmt.Sprintf("| %v | %04X | %d |", kind, dicomsvc.DIMSEStatus(kind), dicomsvc.HTTPStatus(kind))
		if !strings.Contains(text, row) {
			t.Errorf("no row %q", row)
		}
	}
	for _, tt := range []struct {
		limit string
		value any
	}{
		{"maximum PDU length announced", fmt.Sprint(dul.AdvertisedPDU, " bytes")},
		{"presentation contexts proposed to a C-MOVE destination, at most", fmt.Sprint(contextsMax, " an association")},
		{"associations to one C-MOVE destination at once", destinationMax},
		{"wait for the connection to a C-MOVE destination", defaultWaits().connect},
		{"wait for one answer of a C-MOVE destination", defaultWaits().response},
		{"wait for a turn at a C-MOVE destination", defaultWaits().queue},
		{"pending responses of C-MOVE and C-GET, at least every", defaultWaits().pending},
		{"sub-operation under way after a C-CANCEL may last", defaultWaits().cancel},
		{"instances of one C-MOVE or C-GET", retrieveMax},
	} {
		if row := fmt.Sprintf("| %s | %v |", tt.limit, tt.value); !strings.Contains(text, row) {
			t.Errorf("no row %q", row)
		}
	}
	for _, word := range append([]string{dul.ApplicationContext, dul.ImplementationClassUID, dul.ImplementationVersion}, models[0]) {
		if !strings.Contains(text, word) {
			t.Errorf("%s is not stated", word)
		}
	}
}
