package scp

import (
	"slices"
	"strings"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
)

// models are the query/retrieve SOP classes served here.
var models = []string{
	dimse.PatientRootFind, dimse.PatientRootMove, dimse.PatientRootGet,
	dimse.StudyRootFind, dimse.StudyRootMove, dimse.StudyRootGet,
}

const (
	standardRoot = "1.2.840.10008."
	// storageArc holds the storage SOP classes, those that the standard will define included.
	storageArc = "1.2.840.10008.5.1.4.1.1."
	// storageService is the Storage Service Class (PS3.6 Table A-1), as common extended negotiation names it.
	storageService = "1.2.840.10008.4.2"
)

// notStored are the SOP classes of the storage arc that are queries and retrievals: protocols and
// inventories (PS3.4 Annexes HH and JJ).
var notStored = []string{
	"1.2.840.10008.5.1.4.1.1.200.4", "1.2.840.10008.5.1.4.1.1.200.5", "1.2.840.10008.5.1.4.1.1.200.6",
	"1.2.840.10008.5.1.4.1.1.201.2", "1.2.840.10008.5.1.4.1.1.201.3", "1.2.840.10008.5.1.4.1.1.201.4",
	"1.2.840.10008.5.1.4.1.1.201.5", "1.2.840.10008.5.1.4.1.1.201.6",
}

// isStorage reports whether instances of a SOP class are stored: every storage class of PS3.4 §B.5, retired
// ones too, whatever else the standard puts in their arc, and private classes, about which nobody but
// their maker can tell (PS3.4 §B.1). The DICOMDIR is a file and no instance.
func isStorage(abstract string) bool {
	switch {
	case abstract == dicom.MediaStorageDirectoryStorage || slices.Contains(notStored, abstract):
		return false
	case strings.HasPrefix(abstract, standardRoot):
		return strings.HasPrefix(abstract, storageArc) && dicom.ValidUID(abstract) || isStandardStorage(abstract)
	}
	return dicom.ValidUID(abstract)
}

func isStandardStorage(abstract string) bool {
	for uid := range dicom.StorageClasses {
		if uid == abstract {
			return true
		}
	}
	return false
}

// foreign are the classes that the peer itself says belong to another service than storage (PS3.7 §D.3.3.6).
func foreign(r *dul.Request) map[string]bool {
	out := map[string]bool{}
	for _, c := range r.User.CommonExtended {
		if c.ServiceClass != "" && c.ServiceClass != storageService && !isStandardStorage(c.SOPClass) {
			out[c.SOPClass] = true
		}
	}
	return out
}

// negotiate answers every proposed context (PS3.8 §9.3.3.2), the role selections (PS3.7 §D.3.3.4) and the
// extended negotiations (PS3.4 §B.3.1, §C.5.1).
func negotiate(r *dul.Request) (a *dul.Acceptance, relational map[string]bool) {
	a, relational = &dul.Acceptance{}, map[string]bool{}
	other := foreign(r)
	for _, pc := range r.Contexts {
		if other[pc.AbstractSyntax] {
			a.Contexts = append(a.Contexts, dul.ContextResult{ID: pc.ID, Result: dul.ContextAbstractSyntax})
			continue
		}
		a.Contexts = append(a.Contexts, answerContext(pc))
	}
	for _, role := range r.User.Roles {
		if isStorage(role.SOPClass) {
			a.Roles = append(a.Roles, role)
		}
	}
	for _, e := range r.User.Extended {
		switch {
		case len(e.Info) == 0:
		case slices.Contains(models, e.SOPClass):
			info := make([]byte, len(e.Info)) // what is not agreed to is answered 0
			info[0] = e.Info[0] & 1
			relational[e.SOPClass] = info[0] == 1
			a.Extended = append(a.Extended, dul.ExtendedNegotiation{SOPClass: e.SOPClass, Info: info})
		case isStorage(e.SOPClass):
			a.Extended = append(a.Extended, dul.ExtendedNegotiation{SOPClass: e.SOPClass, Info: storageLevel(len(e.Info))})
		}
	}
	return a, relational
}

// storageLevel is the answer to a storage extended negotiation of n bytes (PS3.4 Table B.3-1): level 2 (full),
// digital signatures level 3 (every bit is preserved), no element is coerced.
func storageLevel(n int) []byte {
	info := make([]byte, n)
	copy(info, []byte{2, 0, 3, 0, 0, 0})
	return info
}

func answerContext(pc dul.ProposedContext) dul.ContextResult {
	res := dul.ContextResult{ID: pc.ID, Result: dul.ContextTransferSyntaxes}
	switch {
	case pc.AbstractSyntax == dimse.VerificationClass || slices.Contains(models, pc.AbstractSyntax):
		if i := slices.IndexFunc(pc.TransferSyntaxes, isNative); i >= 0 {
			res.Result, res.TransferSyntax = dul.ContextAccepted, pc.TransferSyntaxes[i]
		}
	case isStorage(pc.AbstractSyntax):
		if syntax := preferred(pc.TransferSyntaxes); syntax != "" {
			res.Result, res.TransferSyntax = dul.ContextAccepted, syntax
		}
	default:
		res.Result = dul.ContextAbstractSyntax
	}
	return res
}

// isNative reports whether data sets are read and written here in the syntax.
func isNative(syntax string) bool {
	return syntax == dicom.ImplicitVRLittleEndian || dicomsvc.Rewritable(syntax, dicom.ImplicitVRLittleEndian)
}

// notEncodings are entries of PS3.6 Table A-1 that do not encode a data set for storage: MIME, XML and live
// video.
var notEncodings = []string{
	"1.2.840.10008.1.2.6.1", "1.2.840.10008.1.2.6.2", "1.2.840.10008.1.2.7.1", "1.2.840.10008.1.2.7.2", "1.2.840.10008.1.2.7.3",
}

// preferred takes the sender's first choice, but explicit before implicit VR where both are offered, since only
// explicit VR keeps the types of private elements, and known syntaxes before private ones.
func preferred(proposed []string) string {
	private := ""
	for i, syntax := range proposed {
		_, known := dicom.LookupSyntax(syntax)
		switch {
		case !dicom.ValidUID(syntax) || slices.Contains(notEncodings, syntax):
		case !known && private == "":
			private = syntax
		case !known:
		case syntax == dicom.ImplicitVRLittleEndian && slices.Contains(proposed[i:], dicom.ExplicitVRLittleEndian):
			return dicom.ExplicitVRLittleEndian
		default:
			return syntax
		}
	}
	return private
}
