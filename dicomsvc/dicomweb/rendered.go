package dicomweb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	"io"
	"net/http"
	"strconv"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/pixel"
)

// Media types of rendered images (PS3.18 Table 8.7.4-1).
const (
	mediaJPEG = "image/jpeg"
	mediaPNG  = "image/png"
	mediaGIF  = "image/gif"
)

// rendering is one instance on its way to images.
type rendering struct {
	server *Server
	in     *dicomsvc.Instance
	img    *pixel.Image
	obj    object
	view   pixel.View
	// quality of JPEG images, 0 for the default; frames, from 1, are what is sent.
	quality int
	frames  []int
	// sole says that an instance was asked for: a bare image shows the first of its frames.
	sole bool
	tag  string // tells this representation from others of the same instance
}

// rendered answers Retrieve Rendered Instance and Frames and their thumbnails (PS3.18 §10.4.1.1.3, §10.4.1.1.4): images of 8 bits to a
// channel, with the window, viewport and quality that were asked for (§8.3.5). A thumbnail of a study or series shows its first instance
// with an image, that of an instance its middle frame.
func (s *Server) rendered(w http.ResponseWriter, r *request) *problem {
	look, bad := parseLook(r.params, r.resource == resThumbnail)
	if bad != nil {
		return bad
	}
	ask := &rendering{server: s, view: look.view, quality: look.quality}
	if bad := ask.open(r); bad != nil {
		return bad
	}
	defer ask.obj.Close()
	if bad := ask.pick(r); bad != nil {
		return bad
	}
	form, ok := r.accept.choose(ask.offers())
	if !ok {
		return newProblem(http.StatusNotAcceptable, "rendered images cannot be sent in the media types asked for",
			`ask for image/jpeg, image/png or image/gif, or for a multipart/related of image/jpeg or image/png`)
	}
	view := ask.view
	view.Window = nil // its address says nothing
	sum := sha256.Sum256(fmt.Appendf(nil, "%+v %d %v %+v", view, ask.quality, ask.frames, form))
	if ask.view.Window != nil {
		sum = sha256.Sum256(fmt.Appendf(sum[:], "%+v", *ask.view.Window))
	}
	ask.tag = "rendered-" + hex.EncodeToString(sum[:8])
	if form.multipart {
		return ask.sendParts(w, r, form)
	}
	return ask.sendOne(w, r, form)
}

// open finds the instance and opens its pixels.
func (g *rendering) open(r *request) *problem {
	bad := notFound()
	for found, err := range g.server.archive.Headers(r.Context(), r.who, r.selection()) {
		if err != nil {
			return failure(err)
		}
		g.in = found.Instance
		if bad = g.openPixels(r, found.Header); bad == nil || r.instance != "" || bad.status >= http.StatusInternalServerError {
			return bad
		}
	}
	return bad
}

func (g *rendering) openPixels(r *request, header *dicom.Dataset) *problem {
	frames, err := g.server.archive.Frames(r.Context(), r.who, g.in)
	if err != nil {
		return failure(err)
	}
	obj, err := g.server.archive.Open(r.Context(), r.who, g.in)
	if err != nil {
		return failure(err)
	}
	if g.img, err = pixel.Open(header, frames, g.in.TransferSyntaxUID, obj); err != nil {
		obj.Close()
		return renderFailure(err)
	}
	g.obj = obj
	return nil
}

// pick settles which frames are sent, and that they are not too large.
func (g *rendering) pick(r *request) *problem {
	count := g.img.Len()
	switch {
	case r.list != "":
		list, bad := parseFrames(r.list)
		if bad != nil {
			return bad
		}
		for _, n := range list {
			if n > count {
				return newProblem(http.StatusNotFound, fmt.Sprintf("frame %d is asked for, but the instance has %d", n, count),
					"ask for frames from 1 to Number of Frames (0028,0008)")
			}
		}
		g.frames = list
		if r.resource == resThumbnail {
			g.frames = list[:1]
		}
	case r.resource == resThumbnail:
		g.frames = []int{count/2 + 1}
	case count > partsMax:
		return newProblem(http.StatusRequestEntityTooLarge, fmt.Sprintf("the instance has %d frames, too many for one answer", count),
			"ask for its frames, with /frames/{list}/rendered")
	default:
		g.sole = true
		for i := range count {
			g.frames = append(g.frames, i+1)
		}
	}
	if _, _, err := g.view.Size(g.img.Format); err != nil {
		if errors.Is(err, pixel.ErrMalformed) {
			return badLook("viewport", "name a part that lies within the image")
		}
		return renderFailure(err)
	}
	return nil
}

// offers lists the forms that the frames can take. Of several frames of an instance a bare JPEG or PNG shows the first,
// a GIF shows all; frames that were listed come in parts.
func (g *rendering) offers() []offer {
	many := len(g.frames) > 1
	var offers []offer
	for _, media := range []string{mediaJPEG, mediaPNG} {
		if !many || g.sole {
			offers = append(offers, offer{media: media})
		}
		offers = append(offers, offer{media: media, multipart: true, list: many && !g.sole})
	}
	return append(offers, offer{media: mediaGIF})
}

// renderFailure says why an image cannot be made.
func renderFailure(err error) *problem {
	const stored = "retrieve the frames as they are stored, with /frames/{list}"
	switch {
	case errors.Is(err, pixel.ErrNoImage):
		return newProblem(http.StatusNotAcceptable, "the instance cannot be shown as an image: "+err.Error(), "retrieve the instance, or its metadata")
	case errors.Is(err, pixel.ErrUnsupportedSyntax), errors.Is(err, pixel.ErrMalformed):
		return newProblem(http.StatusNotAcceptable, "no image can be made: "+err.Error(), stored)
	case errors.Is(err, pixel.ErrLimit):
		return newProblem(http.StatusRequestEntityTooLarge, "no image is made: "+err.Error(), "ask for a smaller viewport, or "+stored)
	}
	return failure(err)
}

// paint renders and encodes frame n, from 1.
func (g *rendering) paint(ctx context.Context, n int, media string) ([]byte, error) {
	m, err := g.draw(ctx, n)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if media == mediaPNG {
		err = pixel.WritePNG(&out, m)
	} else {
		err = pixel.WriteJPEG(&out, m, g.quality)
	}
	return out.Bytes(), err
}

// draw renders a frame when its turn has come: few are in memory at a time.
func (g *rendering) draw(ctx context.Context, n int) (image.Image, error) {
	select {
	case g.server.painters <- struct{}{}:
		defer func() { <-g.server.painters }()
		return g.img.Render(ctx, n-1, g.view)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// animate makes a GIF of all frames.
func (g *rendering) animate(ctx context.Context, delay int) ([]byte, error) {
	columns, rows, err := g.view.Size(g.img.Format)
	if err != nil {
		return nil, err
	}
	if len(g.frames)*columns*rows > animationPixelsMax {
		return nil, fmt.Errorf("%w: %d frames in one GIF", pixel.ErrLimit, len(g.frames))
	}
	moving := pixel.Animation{Delay: delay}
	for _, n := range g.frames {
		m, err := g.draw(ctx, n)
		if err != nil {
			return nil, err
		}
		moving.Add(m)
	}
	var out bytes.Buffer
	err = moving.Write(&out)
	return out.Bytes(), err
}

// sendOne sends a bare image.
func (g *rendering) sendOne(w http.ResponseWriter, r *request, form offer) *problem {
	etag := etagOf(g.in.Digest[:], g.tag)
	if notModified(w, r, etag) {
		return nil
	}
	var body []byte
	var err error
	if form.media == mediaGIF {
		body, err = g.animate(r.Context(), g.img.DelayCentiseconds())
	} else {
		body, err = g.paint(r.Context(), g.frames[0], form.media)
	}
	if err != nil {
		w.Header().Del("ETag")
		return renderFailure(err)
	}
	return g.server.sendPayload(w, r, form.media, etag, payload{size: int64(len(body)), ranges: true, copy: func(w io.Writer, off, n int64) error {
		_, err := w.Write(body[off : off+n])
		return err
	}})
}

// sendParts sends one part for each frame. The first is made before the header is sent.
func (g *rendering) sendParts(w http.ResponseWriter, r *request, form offer) *problem {
	boundary, err := g.server.boundary()
	if err != nil {
		return failure(err)
	}
	if notModified(w, r, weak(etagOf(g.in.Digest[:], g.tag))) {
		return nil
	}
	first, err := g.paint(r.Context(), g.frames[0], form.media)
	if err != nil {
		return renderFailure(err)
	}
	parts := &partWriter{boundary: boundary, inner: form.media}
	w.Header().Set("Content-Type", parts.contentType())
	base := instanceURL(r.root, g.in.StudyInstanceUID, g.in.SeriesInstanceUID, g.in.SOPInstanceUID) + "/frames/"
	return g.server.stream(w, r, http.StatusOK, func(w io.Writer) error {
		for i, n := range g.frames {
			body := first
			if i > 0 {
				if body, err = g.paint(r.Context(), n, form.media); err != nil {
					return err
				}
			}
			if err := parts.part(w, form.media, base+strconv.Itoa(n)+"/rendered", int64(len(body))); err != nil {
				return err
			}
			if _, err := w.Write(body); err != nil {
				return err
			}
		}
		return parts.end(w)
	})
}
