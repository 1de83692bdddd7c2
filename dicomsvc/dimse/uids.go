package dimse

// SOP classes of the services, PS3.4 and PS3.6 Annex A.
const (
	VerificationClass        = "1.2.840.10008.1.1"
	StorageCommitmentClass   = "1.2.840.10008.1.20.1"
	StorageCommitmentModel   = "1.2.840.10008.1.20.1.1" // well-known instance
	PatientRootFind          = "1.2.840.10008.5.1.4.1.2.1.1"
	PatientRootMove          = "1.2.840.10008.5.1.4.1.2.1.2"
	PatientRootGet           = "1.2.840.10008.5.1.4.1.2.1.3"
	StudyRootFind            = "1.2.840.10008.5.1.4.1.2.2.1"
	StudyRootMove            = "1.2.840.10008.5.1.4.1.2.2.2"
	StudyRootGet             = "1.2.840.10008.5.1.4.1.2.2.3"
	PatientStudyOnlyFind     = "1.2.840.10008.5.1.4.1.2.3.1"
	PatientStudyOnlyMove     = "1.2.840.10008.5.1.4.1.2.3.2"
	PatientStudyOnlyGet      = "1.2.840.10008.5.1.4.1.2.3.3"
	ModalityWorklistFind     = "1.2.840.10008.5.1.4.31"
	ModalityPerformedStep    = "1.2.840.10008.3.1.2.3.3"
	CompositeInstanceRootGet = "1.2.840.10008.5.1.4.1.2.4.3"
)

// Transfer syntaxes every peer understands.
const (
	ImplicitLittleEndian = "1.2.840.10008.1.2"
	ExplicitLittleEndian = "1.2.840.10008.1.2.1"
)
