package dimse

// Status codes of PS3.7 Annex C and of the services in PS3.4 that this package
// answers with itself or that its callers share.
const (
	StatusSuccess            uint16 = 0x0000
	StatusCancel             uint16 = 0xFE00
	StatusPending            uint16 = 0xFF00
	StatusPendingWarning     uint16 = 0xFF01 // optional keys not supported
	StatusAttributeList      uint16 = 0x0107
	StatusProcessingFailure  uint16 = 0x0110
	StatusDuplicateInstance  uint16 = 0x0111
	StatusNoSuchInstance     uint16 = 0x0112
	StatusNoSuchEvent        uint16 = 0x0113
	StatusNoSuchArgument     uint16 = 0x0114
	StatusInvalidArgument    uint16 = 0x0115
	StatusAttributeRange     uint16 = 0x0116
	StatusInvalidInstance    uint16 = 0x0117
	StatusNoSuchClass        uint16 = 0x0118
	StatusClassConflict      uint16 = 0x0119
	StatusMissingAttribute   uint16 = 0x0120
	StatusClassNotSupported  uint16 = 0x0122
	StatusNoSuchAction       uint16 = 0x0123
	StatusNotAuthorized      uint16 = 0x0124
	StatusDuplicateInvoke    uint16 = 0x0210
	StatusUnrecognized       uint16 = 0x0211
	StatusMistyped           uint16 = 0x0212
	StatusResourceLimitation uint16 = 0x0213

	StatusOutOfResources     uint16 = 0xA700
	StatusNoMatches          uint16 = 0xA701
	StatusSubOperations      uint16 = 0xA702
	StatusUnknownDestination uint16 = 0xA801
	StatusMismatch           uint16 = 0xA900
	StatusCoerced            uint16 = 0xB000
	StatusElementsDiscarded  uint16 = 0xB006
	StatusClassMismatch      uint16 = 0xB007
	StatusCannotUnderstand   uint16 = 0xC000
)

// IsPending reports whether more responses follow one with this status.
func IsPending(status uint16) bool { return status == StatusPending || status == StatusPendingWarning }

// IsWarning reports whether the operation was done, with a remark.
func IsWarning(status uint16) bool {
	return status>>12 == 0xB || status == 0x0001 || status == StatusAttributeList || status == StatusAttributeRange
}

// IsSuccess reports whether the operation was done, with or without a remark.
func IsSuccess(status uint16) bool { return status == StatusSuccess || IsWarning(status) }
