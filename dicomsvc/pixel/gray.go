package pixel

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"osteon/dicomsvc/dicom"
)

// Functions of a window (PS3.3 §C.11.2.1.3).
const (
	Linear      = "LINEAR"
	LinearExact = "LINEAR_EXACT"
	Sigmoid     = "SIGMOID"
)

// Window is a linear or other section of the values that the modality transformation gives (PS3.3 §C.11.2.1.2).
type Window struct {
	Center, Width float64
	Function      string // LINEAR when empty
}

// valid tells whether the window can be applied: the linear function needs a width of 1, the others one above 0.
func (w Window) valid() bool {
	finite := !math.IsNaN(w.Center) && !math.IsInf(w.Center, 0) && !math.IsInf(w.Width, 0)
	switch w.Function {
	case "", Linear:
		return finite && w.Width >= 1
	case LinearExact, Sigmoid:
		return finite && w.Width > 0
	}
	return false
}

// Validate says what is wrong with a window that was asked for; it fails with ErrMalformed.
func (w Window) Validate() error {
	if !w.valid() {
		return fmt.Errorf("%w: a window needs a finite center, a width of at least 1 (above 0 when not LINEAR), and a function that is LINEAR, LINEAR_EXACT or SIGMOID", ErrMalformed)
	}
	return nil
}

// apply returns where x lies in the window, from 0 to 1.
func (w Window) apply(x float64) float64 {
	switch w.Function {
	case Sigmoid:
		return 1 / (1 + math.Exp(-4*(x-w.Center)/w.Width))
	case LinearExact:
		return min(max((x-w.Center)/w.Width+0.5, 0), 1)
	}
	half := (w.Width - 1) / 2
	switch c := w.Center - 0.5; {
	case x <= c-half:
		return 0
	case x > c+half:
		return 1
	default:
		return (x-c)/(w.Width-1) + 0.5
	}
}

// group returns the item that describes frame i under the tag of a functional group macro (PS3.3 §C.7.6.16), or the data set itself.
func (im *Image) group(i int, tag dicom.Tag) *dicom.Dataset {
	for seq, at := range map[dicom.Tag]int{dicom.PerFrameFunctionalGroupsSequence: i, dicom.SharedFunctionalGroupsSequence: 0} {
		if el := im.header.Get(seq); el != nil && at < len(el.Items) {
			if macro := el.Items[at].Get(tag); macro != nil && len(macro.Items) > 0 {
				return macro.Items[0]
			}
		}
	}
	return im.header
}

// modality returns the modality transformation of frame i (PS3.3 §C.11.1), and whether it can give negative values.
func (im *Image) modality(i int) (apply func(float64) float64, negative bool, err error) {
	if item := lutItem(im.header, dicom.ModalityLUTSequence); item != nil {
		t, err := im.tableOf(item.Get(dicom.LUTDescriptor), item.Get(dicom.LUTData), im.Format.Signed)
		if err != nil {
			return nil, false, fmt.Errorf("modality LUT: %w", err)
		}
		return func(v float64) float64 { return float64(t.at(int(v))) }, false, nil
	}
	d := im.group(i, dicom.PixelValueTransformationSequence)
	slope, ok := number(d, dicom.RescaleSlope, 0)
	if !ok || slope == 0 {
		slope = 1
	}
	intercept, _ := number(d, dicom.RescaleIntercept, 0)
	return func(v float64) float64 { return v*slope + intercept }, im.Format.Signed || intercept < 0 || slope < 0, nil
}

// lutItem returns the first item of a sequence of lookup tables, nil when there is none or it is empty, as some writers leave it.
func lutItem(d *dicom.Dataset, tag dicom.Tag) *dicom.Dataset {
	if el := d.Get(tag); el != nil && len(el.Items) > 0 && el.Items[0].Has(dicom.LUTData) {
		return el.Items[0]
	}
	return nil
}

// number reads the n-th value of a decimal string.
func number(d *dicom.Dataset, tag dicom.Tag, n int) (float64, bool) {
	values := d.Strings(tag)
	if n >= len(values) {
		return 0, false
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(values[n]), 64)
	return v, err == nil && !math.IsNaN(v) && !math.IsInf(v, 0)
}

// interest returns the VOI transformation of frame i to 0..1 (PS3.3 §C.11.2): the window asked for, else the first of the image, else its
// first lookup table; nil when it has none.
func (im *Image) interest(i int, asked *Window, negative bool) (func(float64) float64, error) {
	if asked != nil {
		return asked.apply, nil
	}
	d := im.group(i, dicom.FrameVOILUTSequence)
	center, okC := number(d, dicom.WindowCenter, 0)
	width, okW := number(d, dicom.WindowWidth, 0)
	w := Window{Center: center, Width: width, Function: strings.ToUpper(d.String(dicom.VOILUTFunction))}
	if w.Function != LinearExact && w.Function != Sigmoid {
		w.Function = Linear
	}
	if okC && okW && w.valid() {
		return w.apply, nil
	}
	item := lutItem(d, dicom.VOILUTSequence)
	if item == nil {
		return nil, nil
	}
	t, err := im.tableOf(item.Get(dicom.LUTDescriptor), item.Get(dicom.LUTData), negative)
	if err != nil {
		return nil, fmt.Errorf("VOI LUT: %w", err)
	}
	return func(v float64) float64 { return min(float64(t.at(clampInt(v)))/t.max(), 1) }, nil
}

// clampInt turns any number into an index that a table can clip.
func clampInt(v float64) int { return int(math.Round(min(max(v, -1<<31), 1<<31))) }

// whole is the window of an image that has none: from the smallest value of the frame to the largest, padding left out.
func (im *Image) whole(f *Frame, modality func(float64) float64) func(float64) float64 {
	lo, hi := math.Inf(1), math.Inf(-1)
	padding := im.padding()
	for _, v := range f.Samples {
		if !padding(v) {
			x := f.Format.value(v)
			lo, hi = min(lo, x), max(hi, x)
		}
	}
	if f.Format.BitsStored == 1 || lo > hi {
		lo, hi = 0, 1
	}
	lo, hi = modality(lo), modality(hi)
	if lo > hi {
		lo, hi = hi, lo
	}
	if lo == hi {
		return func(x float64) float64 { return min(max(x, 0), 1) }
	}
	return func(x float64) float64 { return min(max((x-lo)/(hi-lo), 0), 1) }
}

// padding returns what tells whether a sample is padding (PS3.3 §C.7.5.1.1.2).
func (im *Image) padding() func(int32) bool {
	from, ok := im.header.Int(dicom.PixelPaddingValue)
	if !ok {
		return func(int32) bool { return false }
	}
	f := im.Format
	low := int64(f.extend(uint32(from)))
	high := low
	if to, ok := im.header.Int(dicom.PixelPaddingRangeLimit); ok {
		high = int64(f.extend(uint32(to)))
	}
	low, high = min(low, high), max(low, high)
	return func(v int32) bool { return int64(v) >= low && int64(v) <= high }
}

// inverted tells whether the smallest value is white.
func (im *Image) inverted() bool {
	return im.Format.Photometric == Monochrome1 || strings.EqualFold(im.header.String(dicom.PresentationLUTShape), "INVERSE")
}

// gray returns the function from samples of f, frame i of the image, to gray values of 8 bits.
func (im *Image) gray(f *Frame, i int, asked *Window) (func(int32) uint8, error) {
	modality, negative, err := im.modality(i)
	if err != nil {
		return nil, err
	}
	interest, err := im.interest(i, asked, negative)
	if err != nil {
		return nil, err
	}
	if interest == nil {
		interest = im.whole(f, modality)
	}
	inverted := im.inverted()
	display := func(v int32) uint8 {
		y := uint8(math.Round(255 * interest(modality(f.Format.value(v)))))
		if inverted {
			y = 255 - y
		}
		return y
	}
	if f.Format.BitsStored > directBits || len(f.Samples) < 1<<f.Format.BitsStored {
		return display, nil
	}
	mask := uint32(1)<<f.Format.BitsStored - 1
	grays := make([]uint8, mask+1)
	for v := range grays {
		grays[v] = display(f.Format.extend(uint32(v)))
	}
	return func(v int32) uint8 { return grays[uint32(v)&mask] }, nil
}
