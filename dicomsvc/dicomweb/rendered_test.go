package dicomweb

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"net/http"
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// picture is a made up image of 8-bit pixels.
type picture struct {
	columns, rows, frames int
	photometric, window   string // window is center\width or empty
	value                 func(frame, x, y int) uint8
}

// put stores the picture as the instance of the given number.
func (p picture) put(t *testing.T, s *service, number int) *dicomsvc.Instance {
	t.Helper()
	d := &dicom.Dataset{}
	uid := fmt.Sprintf("1.2.826.0.1.3680043.2.1125.9.%d", number)
	for tag, value := range map[dicom.Tag]string{
		dicom.SOPClassUID: "1.2.840.10008.5.1.4.1.1.7", dicom.SOPInstanceUID: uid, dicom.StudyInstanceUID: "1.2",
		dicom.SeriesInstanceUID: "1.2.3", dicom.NumberOfFrames: fmt.Sprint(p.frames), dicom.PhotometricInterpretation: p.photometric,
	} {
		d.SetStrings(tag, value)
	}
	for tag, n := range map[dicom.Tag]int{
		dicom.Rows: p.rows, dicom.Columns: p.columns, dicom.SamplesPerPixel: 1, dicom.BitsAllocated: 8, dicom.BitsStored: 8, dicom.HighBit: 7,
	} {
		d.SetInt(tag, n)
	}
	if p.window != "" {
		var c, w string
		fmt.Sscanf(p.window, "%s %s", &c, &w)
		d.SetStrings(dicom.WindowCenter, c)
		d.SetStrings(dicom.WindowWidth, w)
	}
	var pixels []byte
	for f := range p.frames {
		for i := range p.rows * p.columns {
			pixels = append(pixels, p.value(f, i%p.columns, i/p.columns))
		}
	}
	if len(pixels)%2 == 1 {
		pixels = append(pixels, 0)
	}
	d.Set(dicom.Element{Tag: dicom.PixelData, VR: dicom.OB, Value: pixels})
	body, err := d.Encode(nil, dicom.ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.archive.Put(t.Context(), dicomsvc.PutRequest{TransferSyntaxUID: dicom.ExplicitVRLittleEndian, Body: bytes.NewReader(body)}); err != nil {
		t.Fatal(err)
	}
	return s.archive.item(&dicomsvc.Instance{SOPInstanceUID: uid}).in
}

func ramp(_, x, y int) uint8 { return uint8(8*y + x) }

// show fetches a rendered resource as PNG and decodes it.
func (s *service) show(t *testing.T, path string) image.Image {
	t.Helper()
	m, err := png.Decode(bytes.NewReader(s.get(t, path, "Accept", "image/png").want(t, 200).body))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func grayAt(m image.Image, x, y int) int {
	return int(color.GrayModel.Convert(m.At(x, y)).(color.Gray).Y)
}

// Behaviour 65.
func TestRenderedWindowAndInversion(t *testing.T) {
	s := newService(t, nil)
	own := picture{8, 8, 1, "MONOCHROME2", "32 17", ramp}.put(t, s, 1)
	none := picture{8, 8, 1, "MONOCHROME2", "", ramp}.put(t, s, 2)
	white := picture{8, 8, 1, "MONOCHROME1", "", ramp}.put(t, s, 3)
	tests := []struct {
		name, path string
		want       func(v int) int
	}{
		{"own window", urlOf(own) + "/rendered", func(v int) int { return min(max((2*v-47)*255/32, 0), 255) }},
		{"no window: all values", urlOf(none) + "/rendered", func(v int) int { return v * 255 / 63 }},
		{"MONOCHROME1 is inverted", urlOf(white) + "/rendered", func(v int) int { return 255 - v*255/63 }},
		{"window asked for", urlOf(none) + "/rendered?window=32,17,linear", func(v int) int { return min(max((2*v-47)*255/32, 0), 255) }},
		{"exact", urlOf(none) + "/rendered?window=32,16,linear-exact", func(v int) int { return min(max((v-24)*255/16, 0), 255) }},
		{"frame", urlOf(none) + "/frames/1/rendered?window=32,1,linear", func(v int) int { return map[bool]int{true: 255}[v >= 32] }},
		{"replaces the image's own", urlOf(own) + "/rendered?window=128,256,LINEAR", func(v int) int { return v }},
	}
	for _, tt := range tests {
		m := s.show(t, tt.path)
		for y := range 8 {
			for x := range 8 {
				if got, want := grayAt(m, x, y), tt.want(8*y+x); got < want-1 || got > want+1 {
					t.Fatalf("%s: value %d is shown as %d, want %d", tt.name, 8*y+x, got, want)
				}
			}
		}
	}
	m := s.show(t, urlOf(none)+"/rendered?window=32,8,sigmoid")
	if low, mid, high := grayAt(m, 0, 0), grayAt(m, 0, 4), grayAt(m, 7, 7); low > 1 || mid < 126 || mid > 129 || high < 254 {
		t.Errorf("sigmoid: %d, %d, %d", low, mid, high)
	}
}

// Behaviour 65.
func TestRenderedViewport(t *testing.T) {
	s := newService(t, nil)
	in := picture{40, 20, 1, "MONOCHROME2", "128 256", func(_, x, y int) uint8 {
		if x < 20 {
			return 0
		}
		return 200
	}}.put(t, s, 1)
	tests := []struct {
		viewport    string
		w, h        int
		left, right int // gray at the left and right edges
	}{
		{"10,10", 10, 5, 0, 200},
		{"80,80", 80, 40, 0, 200},
		{"100,5", 10, 5, 0, 200},
		{"10,10,20,0,20,20", 10, 10, 200, 200},
		{"10,10,,,20,20", 10, 10, 0, 0},
		{"10,10,,,-40,20", 10, 5, 200, 0},
		{"10,10,,,40,-20", 10, 5, 0, 200},
		{"20,20,30,,,", 10, 20, 200, 200},
	}
	for _, tt := range tests {
		m := s.show(t, urlOf(in)+"/rendered?viewport="+tt.viewport)
		if b := m.Bounds(); b.Dx() != tt.w || b.Dy() != tt.h {
			t.Errorf("%s: %d x %d, want %d x %d", tt.viewport, b.Dx(), b.Dy(), tt.w, tt.h)
			continue
		}
		if l, r := grayAt(m, 0, 0), grayAt(m, tt.w-1, tt.h-1); l != tt.left || r != tt.right {
			t.Errorf("%s: edges %d and %d, want %d and %d", tt.viewport, l, r, tt.left, tt.right)
		}
	}
	if b := s.show(t, urlOf(in)+"/thumbnail").Bounds(); b.Dx() != thumbnailSide || b.Dy() != thumbnailSide/2 {
		t.Errorf("thumbnail of %v", b)
	}
	if b := s.show(t, "/studies/1.2/thumbnail?viewport=20,20").Bounds(); b.Dx() != 20 {
		t.Errorf("thumbnail of a study of %v", b)
	}
	if b := s.show(t, "/studies/1.2/series/1.2.3/thumbnail?viewport=20,20").Bounds(); b.Dx() != 20 {
		t.Errorf("thumbnail of a series of %v", b)
	}
}

// Behaviour 65.
func TestRenderedMediaTypes(t *testing.T) {
	s := newService(t, nil)
	one := picture{8, 8, 1, "MONOCHROME2", "128 256", ramp}.put(t, s, 1)
	many := picture{8, 8, 3, "MONOCHROME2", "128 256", func(f, _, _ int) uint8 { return uint8(50 * (f + 1)) }}.put(t, s, 2)
	first := func(m image.Image) int { return grayAt(m, 4, 4) }
	jpegOf := func(b []byte) int {
		m, err := jpeg.Decode(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		return first(m)
	}
	near := func(what string, got, want int) {
		t.Helper()
		if got < want-2 || got > want+2 {
			t.Errorf("%s: gray %d, want %d", what, got, want)
		}
	}
	for _, accept := range []string{"", "*/*", "image/*", "image/jpeg", "image/webp,image/jpeg;q=0.5"} {
		header := []string{"Accept", accept}
		if accept == "" {
			header = nil
		}
		r := s.get(t, urlOf(one)+"/rendered", header...).want(t, 200)
		if kind := r.Header.Get("Content-Type"); kind != "image/jpeg" {
			t.Errorf("%q is answered with %s", accept, kind)
		}
		near(accept, jpegOf(r.body), 36)
	}
	near("first frame", jpegOf(s.get(t, urlOf(many)+"/rendered", "Accept", "image/jpeg").want(t, 200).body), 50)
	near("middle frame", jpegOf(s.get(t, urlOf(many)+"/thumbnail").want(t, 200).body), 100)
	near("frame 3", jpegOf(s.get(t, urlOf(many)+"/frames/3/rendered").want(t, 200).body), 150)
	near("thumbnail of frame 3", jpegOf(s.get(t, urlOf(many)+"/frames/3/thumbnail").want(t, 200).body), 150)
	for path, want := range map[string][]int{"/rendered": {50, 100, 150}, "/frames/3,1/rendered": {150, 50}} {
		parts := s.get(t, urlOf(many)+path, "Accept", `multipart/related; type="image/jpeg"`).want(t, 200).pieces(t)
		if len(parts) != len(want) {
			t.Fatalf("%s: %d parts", path, len(parts))
		}
		for i, p := range parts {
			near(fmt.Sprint(path, " part ", i), jpegOf(p.body), want[i])
		}
	}
	if n := len(s.get(t, urlOf(many)+"/frames/1,2/rendered", "Accept", "image/png").want(t, 200).pieces(t)); n != 2 {
		t.Errorf("two frames as image/png: %d parts", n)
	}
	moving, err := gif.DecodeAll(bytes.NewReader(s.get(t, urlOf(many)+"/rendered", "Accept", "image/gif").want(t, 200).body))
	if err != nil || len(moving.Image) != 3 {
		t.Fatalf("animated: %v", err)
	}
	for i, m := range moving.Image {
		near(fmt.Sprint("animated ", i), first(m), 50*(i+1))
	}
	small, large := s.get(t, urlOf(one)+"/rendered?quality=1&viewport=400,400").want(t, 200), s.get(t, urlOf(one)+"/rendered?quality=100&viewport=400,400").want(t, 200)
	if len(small.body) >= len(large.body) {
		t.Errorf("quality 1 takes %d bytes, quality 100 %d", len(small.body), len(large.body))
	}
	tag := small.Header.Get("ETag")
	s.get(t, urlOf(one)+"/rendered?quality=1&viewport=400,400", "If-None-Match", tag).want(t, 304)
	s.get(t, urlOf(one)+"/rendered?quality=2&viewport=400,400", "If-None-Match", tag).want(t, 200)
	s.get(t, urlOf(one)+"/rendered?quality=1&viewport=400,400&window=3,4,linear", "If-None-Match", tag).want(t, 200)
	if head := s.do(t, http.MethodHead, urlOf(one)+"/rendered?quality=1&viewport=400,400", nil).want(t, 200); head.ContentLength != int64(len(small.body)) {
		t.Errorf("HEAD says %d bytes of %d", head.ContentLength, len(small.body))
	}
}

// Behaviour 65.
func TestRenderedRefusals(t *testing.T) {
	s := newService(t, nil)
	in := picture{8, 8, 2, "MONOCHROME2", "", ramp}.put(t, s, 1)
	odd := picture{8, 8, 1, "CMYK", "", ramp}.put(t, s, 2)
	long := picture{1, 1, animationPixelsMax/64/64 + 1, "MONOCHROME2", "", ramp}.put(t, s, 3)
	report := s.load(t, "highdicom/sr_document.dcm")[0]
	j2k := s.load(t, bySyntax[dicom.JPEG2000Lossless])[0]
	for path, status := range map[string]int{
		urlOf(report) + "/rendered":                               406,
		urlOf(j2k) + "/rendered":                                  406,
		urlOf(odd) + "/rendered":                                  406,
		urlOf(in) + "/rendered?accept=image/jp2":                  406,
		urlOf(in) + "/frames/3/rendered":                          404,
		urlOf(in) + "/frames/0/rendered":                          400,
		urlOf(in) + "/frames/x/thumbnail":                         400,
		urlOf(in) + "/frames/1/nothing":                           404,
		"/studies/1.2.99/thumbnail":                               404,
		urlOf(in) + "/rendered?window=1":                          400,
		urlOf(in) + "/rendered?window=1,0,linear":                 400,
		urlOf(in) + "/rendered?window=1,NaN,linear":               400,
		urlOf(in) + "/rendered?window=1,2,cubic":                  400,
		urlOf(in) + "/rendered?window=1,0.5,sigmoid":              200,
		urlOf(in) + "/rendered?viewport=0,10":                     400,
		urlOf(in) + "/rendered?viewport=10":                       400,
		urlOf(in) + "/rendered?viewport=10,10,8,8,1,1":            400,
		urlOf(in) + "/rendered?viewport=16385,1":                  413,
		urlOf(in) + "/rendered?viewport=16384,16384":              413,
		urlOf(in) + "/rendered?quality=0":                         400,
		urlOf(in) + "/rendered?quality=101":                       400,
		urlOf(in) + "/rendered?annotation=patient":                200,
		urlOf(in) + "/rendered?annotation=name":                   400,
		urlOf(in) + "/rendered?iccprofile=srgb":                   200,
		urlOf(in) + "/rendered?iccprofile=x":                      400,
		urlOf(in) + "/rendered?unheard=of":                        200,
		urlOf(long) + "/rendered?viewport=64,64&accept=image/gif": 413,
	} {
		r := s.get(t, path)
		if r.StatusCode != status {
			t.Errorf("%s: status %d, want %d: %s", path, r.StatusCode, status, clip(r.body))
		}
		if status >= 400 && r.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: refused as %s", path, r.Header.Get("Content-Type"))
		}
	}
}
