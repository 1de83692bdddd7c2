//go:build ignore

// Gen writes dict_gen.go and sopclass_gen.go from the tables of the DICOM standard in JSON form.
//
//	go run gen.go DIR [OUT]
//
// OUT is where the files go, the working directory if it is not given. DIR holds attributes.json (PS3.6 Table 6-1, 7-1 and 8-1) and sops.json (storage SOP classes of PS3.4 B.5).
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/format"
	"log"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

type attribute struct {
	Tag     string `json:"tag"`
	Keyword string `json:"keyword"`
	VR      string `json:"valueRepresentation"`
	Retired string `json:"retired"`
	Name    string `json:"name"`
}

type sop struct {
	Name string `json:"name"`
	ID   string `json:"id"`
}

// commands are the elements of PS3.7 Table E.1-1, which PS3.6 does not list.
var commands = []attribute{
	{Tag: "(0000,0000)", Keyword: "CommandGroupLength", VR: "UL"},
	{Tag: "(0000,0002)", Keyword: "AffectedSOPClassUID", VR: "UI"},
	{Tag: "(0000,0003)", Keyword: "RequestedSOPClassUID", VR: "UI"},
	{Tag: "(0000,0100)", Keyword: "CommandField", VR: "US"},
	{Tag: "(0000,0110)", Keyword: "MessageID", VR: "US"},
	{Tag: "(0000,0120)", Keyword: "MessageIDBeingRespondedTo", VR: "US"},
	{Tag: "(0000,0600)", Keyword: "MoveDestination", VR: "AE"},
	{Tag: "(0000,0700)", Keyword: "Priority", VR: "US"},
	{Tag: "(0000,0800)", Keyword: "CommandDataSetType", VR: "US"},
	{Tag: "(0000,0900)", Keyword: "Status", VR: "US"},
	{Tag: "(0000,0901)", Keyword: "OffendingElement", VR: "AT"},
	{Tag: "(0000,0902)", Keyword: "ErrorComment", VR: "LO"},
	{Tag: "(0000,0903)", Keyword: "ErrorID", VR: "US"},
	{Tag: "(0000,1000)", Keyword: "AffectedSOPInstanceUID", VR: "UI"},
	{Tag: "(0000,1001)", Keyword: "RequestedSOPInstanceUID", VR: "UI"},
	{Tag: "(0000,1002)", Keyword: "EventTypeID", VR: "US"},
	{Tag: "(0000,1005)", Keyword: "AttributeIdentifierList", VR: "AT"},
	{Tag: "(0000,1008)", Keyword: "ActionTypeID", VR: "US"},
	{Tag: "(0000,1020)", Keyword: "NumberOfRemainingSuboperations", VR: "US"},
	{Tag: "(0000,1021)", Keyword: "NumberOfCompletedSuboperations", VR: "US"},
	{Tag: "(0000,1022)", Keyword: "NumberOfFailedSuboperations", VR: "US"},
	{Tag: "(0000,1023)", Keyword: "NumberOfWarningSuboperations", VR: "US"},
	{Tag: "(0000,1030)", Keyword: "MoveOriginatorApplicationEntityTitle", VR: "AE"},
	{Tag: "(0000,1031)", Keyword: "MoveOriginatorMessageID", VR: "US"},
}

// resolved picks the VR that an implicit VR reader assumes where PS3.6 leaves a choice (PS3.5 Annex A.1).
var resolved = map[string]string{
	"OB or OW":       "OW",
	"US or SS":       "US",
	"US or SS or OW": "OW",
	"US or OW":       "OW",
}

func main() {
	if len(os.Args) != 2 && len(os.Args) != 3 {
		log.Fatal("usage: go run gen.go DIR [OUT]")
	}
	out := append(os.Args, ".")[2]
	dictionary(out, load[attribute](filepath.Join(os.Args[1], "attributes.json")))
	sopClasses(out, load[sop](filepath.Join(os.Args[1], "sops.json")))
}

func load[T any](path string) []T {
	raw, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	var list []T
	if err := json.Unmarshal(raw, &list); err != nil {
		log.Fatal(err)
	}
	return list
}

type row struct {
	tag     uint32
	vr      string
	keyword string
	signed  bool // US or SS, by Pixel Representation
	comment string
}

func dictionary(out string, list []attribute) {
	var rows []row
	for _, a := range append(commands, list...) {
		if a.VR == "" || a.VR == "See Note 2" && a.Keyword == "" {
			continue
		}
		x := "0"
		if strings.HasPrefix(a.Tag, "(0028") {
			x = "1" // (0028,0400) is an attribute of its own beside (0028,04X0)
		}
		hex := strings.NewReplacer("(", "", ")", "", ",", "", "X", x).Replace(a.Tag)
		n, err := strconv.ParseUint(hex, 16, 32)
		if err != nil {
			log.Fatalf("tag %q: %v", a.Tag, err)
		}
		vr := a.VR
		if r, ok := resolved[vr]; ok {
			vr = r
		}
		if strings.HasPrefix(vr, "See") {
			vr = ""
		}
		note := a.Tag + " " + a.VR
		if a.Retired == "Y" {
			note += ", retired"
		}
		rows = append(rows, row{uint32(n), vr, a.Keyword, a.VR == "US or SS", note})
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i].tag < rows[j].tag })

	var b bytes.Buffer
	header(&b)
	b.WriteString("// Tags of PS3.6 and PS3.7 by keyword. Repeating groups and elements (50XX, 60XX, 7FXX, 0020,31XX and the like) carry zeros\n// where the standard writes X, those of group 0028 ones.\nconst (\n")
	for _, r := range rows {
		if r.keyword != "" {
			fmt.Fprintf(&b, "%s Tag = 0x%08X // %s\n", r.keyword, r.tag, r.comment)
		}
	}
	b.WriteString(")\n\n// dictionary is in ascending order of tags.\nvar dictionary = [...]entry{\n")
	for _, r := range rows {
		vr := "vrNone"
		if r.vr != "" {
			vr = r.vr
		}
		fmt.Fprintf(&b, "{0x%08X, %s, %t, %q},\n", r.tag, vr, r.signed, r.keyword)
	}
	b.WriteString("}\n\n// byKeyword holds indexes into dictionary in ascending order of keywords.\nvar byKeyword = [...]uint16{\n")
	var order []int
	for i, r := range rows {
		if r.keyword != "" {
			order = append(order, i)
		}
	}
	sort.Slice(order, func(i, j int) bool { return rows[order[i]].keyword < rows[order[j]].keyword })
	for n, i := range order {
		fmt.Fprintf(&b, "%d,", i)
		if n%16 == 15 {
			b.WriteByte('\n')
		}
	}
	b.WriteString("\n}\n")
	save(filepath.Join(out, "dict_gen.go"), b.Bytes())
}

func sopClasses(out string, list []sop) {
	sort.Slice(list, func(i, j int) bool { return list[i].ID < list[j].ID })
	var b bytes.Buffer
	header(&b)
	b.WriteString("// storageClasses are the storage SOP classes of PS3.4 B.5 in ascending order of UIDs.\nvar storageClasses = [...]uidName{\n")
	last := ""
	for _, s := range list {
		if s.ID == last {
			continue
		}
		last = s.ID
		fmt.Fprintf(&b, "{%q, %q},\n", s.ID, s.Name)
	}
	b.WriteString("}\n")
	save(filepath.Join(out, "sopclass_gen.go"), b.Bytes())
}

func header(b *bytes.Buffer) {
	b.WriteString("// Code generated by gen.go; DO NOT EDIT.\n\npackage dicom\n\n")
}

func save(path string, src []byte) {
	code, err := format.Source(src)
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(path, code, 0o644); err != nil {
		log.Fatal(err)
	}
}
