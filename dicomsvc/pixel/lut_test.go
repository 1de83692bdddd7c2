package pixel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"testing"

	"osteon/dicomsvc/dicom"
)

func words(v ...int) []byte {
	var b []byte
	for _, n := range v {
		b = binary.LittleEndian.AppendUint16(b, uint16(n))
	}
	return b
}

// strip is an image of one row with the values given, and what more its header has.
func strip(t *testing.T, f Format, values []int32, more func(d *dicom.Dataset)) *Image {
	t.Helper()
	f.Rows, f.Columns, f.Samples = 1, len(values), 1
	f.HighBit = f.BitsStored - 1
	d, _ := raw{Format: f, frames: 1, value: func(_, i int) int32 { return values[i] }}.dataset(t)
	more(d)
	b, err := d.Encode(nil, dicom.ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	im, _, err := open(b, dicom.ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// shown is the rendered row.
func shown(t *testing.T, im *Image) []color.RGBA {
	t.Helper()
	m, err := im.Render(t.Context(), 0, View{})
	if err != nil {
		t.Fatal(err)
	}
	var out []color.RGBA
	for x := range m.Bounds().Dx() {
		r, g, b, _ := m.At(x, 0).RGBA()
		out = append(out, color.RGBA{uint8(r >> 8), uint8(g >> 8), uint8(b >> 8), 255})
	}
	return out
}

func lut(descriptor, data []byte) []*dicom.Dataset {
	item := &dicom.Dataset{}
	item.Set(dicom.Element{Tag: dicom.LUTDescriptor, VR: dicom.US, Value: descriptor})
	item.Set(dicom.Element{Tag: dicom.LUTData, VR: dicom.OW, Value: data})
	return []*dicom.Dataset{item}
}

func macro(tag dicom.Tag, values map[dicom.Tag]string) *dicom.Dataset {
	item, group := &dicom.Dataset{}, &dicom.Dataset{}
	for tag, v := range values {
		item.SetStrings(tag, v)
	}
	group.Set(dicom.Element{Tag: tag, VR: dicom.SQ, Items: []*dicom.Dataset{item}})
	return group
}

// Behaviour 65. Every kind of transformation of gray values, on its own.
func TestGrayTransformations(t *testing.T) {
	eight := Format{BitsAllocated: 8, BitsStored: 8, Photometric: Monochrome2}
	signed := Format{BitsAllocated: 16, BitsStored: 12, Signed: true, Photometric: Monochrome2}
	window := func(center, width string) func(d *dicom.Dataset) {
		return func(d *dicom.Dataset) {
			d.SetStrings(dicom.WindowCenter, center, "7")
			d.SetStrings(dicom.WindowWidth, width, "9")
		}
	}
	tests := []struct {
		name   string
		f      Format
		values []int32
		more   func(d *dicom.Dataset)
		want   []int
	}{
		{"all values, signed", signed, []int32{-2048, 0, 2047}, func(*dicom.Dataset) {}, []int{0, 128, 255}},
		{"window, first of several", signed, []int32{-100, 0, 99, 100}, window("0", "200"), []int{0, 128, 255, 255}},
		{"rescale before window", eight, []int32{0, 10, 20}, func(d *dicom.Dataset) {
			window("0", "40")(d)
			d.SetStrings(dicom.RescaleSlope, "2")
			d.SetStrings(dicom.RescaleIntercept, "-20")
		}, []int{0, 131, 255}},
		{"window of no width is none", eight, []int32{0, 10, 20}, window("0", "0"), []int{0, 128, 255}},
		{"modality LUT, clipped at its ends", eight, []int32{9, 10, 11, 12}, func(d *dicom.Dataset) {
			d.Set(dicom.Element{Tag: dicom.ModalityLUTSequence, VR: dicom.SQ, Items: lut(words(2, 10, 16), words(1000, 3000))})
			window("2000.5", "2001")(d)
		}, []int{0, 0, 255, 255}},
		{"VOI LUT after rescale to negative values", eight, []int32{0, 1, 2, 3}, func(d *dicom.Dataset) {
			d.SetStrings(dicom.RescaleIntercept, "-2")
			d.Set(dicom.Element{Tag: dicom.VOILUTSequence, VR: dicom.SQ, Items: lut(words(3, -1, 12), words(0, 2048, 4095))})
		}, []int{0, 0, 128, 255}},
		{"VOI LUT with two entries in a word", eight, []int32{0, 1, 2, 3}, func(d *dicom.Dataset) {
			d.Set(dicom.Element{Tag: dicom.VOILUTSequence, VR: dicom.SQ, Items: lut(words(4, 0, 8), []byte{9, 8, 7, 6})})
		}, []int{9, 8, 7, 6}},
		{"padding does not count", eight, []int32{0, 50, 100, 255}, func(d *dicom.Dataset) {
			d.Set(dicom.Element{Tag: dicom.PixelPaddingValue, VR: dicom.US, Value: words(255)})
		}, []int{0, 128, 255, 255}},
		{"shared functional groups", eight, []int32{0, 10, 20}, func(d *dicom.Dataset) {
			g := macro(dicom.FrameVOILUTSequence, map[dicom.Tag]string{dicom.WindowCenter: "10.5", dicom.WindowWidth: "21"})
			d.Set(dicom.Element{Tag: dicom.SharedFunctionalGroupsSequence, VR: dicom.SQ, Items: []*dicom.Dataset{g}})
		}, []int{0, 128, 255}},
		{"functional groups of the frame", eight, []int32{0, 10, 20}, func(d *dicom.Dataset) {
			window("100", "10")(d)
			g := macro(dicom.FrameVOILUTSequence, map[dicom.Tag]string{dicom.WindowCenter: "10.5", dicom.WindowWidth: "21"})
			d.Set(dicom.Element{Tag: dicom.PerFrameFunctionalGroupsSequence, VR: dicom.SQ, Items: []*dicom.Dataset{g}})
		}, []int{0, 128, 255}},
		{"presentation LUT shape", eight, []int32{0, 255}, func(d *dicom.Dataset) { d.SetStrings(dicom.PresentationLUTShape, "INVERSE") }, []int{255, 0}},
		{"32 bits", Format{BitsAllocated: 32, BitsStored: 32, Photometric: Monochrome2}, []int32{0, -1 << 31, -1}, func(*dicom.Dataset) {}, []int{0, 128, 255}},
	}
	for _, tt := range tests {
		for i, c := range shown(t, strip(t, tt.f, tt.values, tt.more)) {
			if got := int(c.R); got < tt.want[i]-1 || got > tt.want[i]+1 {
				t.Errorf("%s: value %d is shown as %d, want %d", tt.name, tt.values[i], got, tt.want[i])
			}
		}
	}
}

// Behaviour 65. Palettes, whole and in segments (PS3.3 §C.7.9).
func TestPalette(t *testing.T) {
	palettes := func(kind [3]dicom.Tag, data ...[]byte) func(d *dicom.Dataset) {
		return func(d *dicom.Dataset) {
			for i, tag := range []dicom.Tag{dicom.RedPaletteColorLookupTableDescriptor, dicom.GreenPaletteColorLookupTableDescriptor, dicom.BluePaletteColorLookupTableDescriptor} {
				d.Set(dicom.Element{Tag: tag, VR: dicom.US, Value: words(4, 10, 16)})
				d.Set(dicom.Element{Tag: kind[i], VR: dicom.OW, Value: data[i]})
			}
		}
	}
	whole := [3]dicom.Tag{dicom.RedPaletteColorLookupTableData, dicom.GreenPaletteColorLookupTableData, dicom.BluePaletteColorLookupTableData}
	parts := [3]dicom.Tag{dicom.SegmentedRedPaletteColorLookupTableData, dicom.SegmentedGreenPaletteColorLookupTableData, dicom.SegmentedBluePaletteColorLookupTableData}
	f := Format{BitsAllocated: 8, BitsStored: 8, Photometric: PaletteColor}
	want := "[{0 64 255 255} {0 64 255 255} {16 32 255 255} {32 16 255 255} {48 0 255 255} {48 0 255 255}]"
	values := []int32{0, 10, 11, 12, 13, 200}
	im := strip(t, f, values, palettes(whole, words(0, 0x1000, 0x2000, 0x3000), words(0x4000, 0x2000, 0x1000, 0), words(0xFF00, 0xFF00, 0xFF00, 0xFF00)))
	if got := fmt.Sprint(shown(t, im)); got != want {
		t.Errorf("whole: %v, want %v", got, want)
	}
	im = strip(t, f, values, palettes(parts, words(0, 1, 0, 1, 3, 0x3000), words(0, 4, 0x4000, 0x2000, 0x1000, 0), words(0, 1, 0xFF00, 0, 1, 0xFF00, 2, 2, 0, 0)))
	if got := fmt.Sprint(shown(t, im)); got != want {
		t.Errorf("segments: %v, want %v", got, want)
	}
	for name, data := range map[string][]byte{
		"none": {}, "too few": words(0, 2, 1, 2), "a line first": words(1, 4, 9), "kind 3": words(3, 1, 1), "cut": words(0, 9, 1),
		"itself": words(0, 1, 5, 2, 9, 0, 0), "far away": words(0, 1, 5, 2, 1, 0xFFFF, 0xFFFF),
	} {
		im := strip(t, f, values, palettes(parts, data, data, data))
		if _, err := im.Render(t.Context(), 0, View{}); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestViewSize: a view is fitted into its box, and bounded.
func TestViewSize(t *testing.T) {
	f := Format{Rows: 100, Columns: 200}
	for _, tt := range []struct {
		v             View
		columns, rows int
	}{
		{View{}, 200, 100}, {View{Columns: 50, Rows: 50}, 50, 25}, {View{Columns: 400, Rows: 50}, 100, 50}, {View{Columns: 20}, 20, 10}, {View{Rows: 300}, 600, 300},
		{View{Columns: 10, Rows: 10, Part: image.Rect(190, 0, 1000, 20)}, 5, 10}, {View{Columns: 1, Rows: 1}, 1, 1},
	} {
		if c, r, err := tt.v.Size(f); err != nil || c != tt.columns || r != tt.rows {
			t.Errorf("%+v: %d x %d, %v; want %d x %d", tt.v, c, r, err, tt.columns, tt.rows)
		}
	}
	for _, v := range []View{{Columns: ViewSideMax + 1}, {Rows: ViewSideMax}, {Columns: -1}, {Columns: ViewSideMax, Rows: ViewSideMax}} {
		if _, _, err := v.Size(f); !errors.Is(err, ErrLimit) {
			t.Errorf("%+v: %v", v, err)
		}
	}
	if _, _, err := (View{Part: image.Rect(200, 0, 300, 50)}).Size(f); !errors.Is(err, ErrMalformed) {
		t.Errorf("a part outside: %v", err)
	}
}
