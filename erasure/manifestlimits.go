package erasure

const (
	// manifestInstancesMax bounds the instances of one section; a larger study has several packs.
	manifestInstancesMax = 1 << 17
	// manifestFramesMax bounds the frames of all instances of a section.
	manifestFramesMax = 1 << 24
	// manifestStringMax bounds a UID (64 by the standard), an AE title (16) and other names.
	manifestStringMax = 256
	// manifestIndexMax bounds the index before compression: all instances and frames at their
	// usual size, several times over.
	manifestIndexMax = 256 << 20
	// HeaderBytesMax bounds the header metadata that a manifest keeps of one instance; larger ones
	// are left out and read from the data set itself.
	HeaderBytesMax = 256 << 10
	// headerGroupBytes is how many bytes of headers are compressed together: enough that the
	// equal attributes of a series' slices cost nothing, little enough to hold.
	headerGroupBytes = 1 << 20
)
