package maildispatchv1

// ErrorDomain is the domain of every google.rpc.ErrorInfo this service sends.
const ErrorDomain = "maildispatch"

// Trailers that repeat what stands in grpc-status-details-bin, for callers whose library does
// not read that: the reason of google.rpc.ErrorInfo, and the milliseconds of
// google.rpc.RetryInfo.
const (
	TrailerReason     = "maildispatch-reason"
	TrailerRetryAfter = "maildispatch-retry-after-ms"
)

// Reasons of google.rpc.ErrorInfo, and of MailFailure. They are part of the API: more may come,
// none is ever renamed. proto/README.md says which status code each comes with and what a
// caller does about it.
const (
	ReasonValidationFailed      = "VALIDATION_FAILED"
	ReasonPageTokenInvalid      = "PAGE_TOKEN_INVALID"
	ReasonCursorExpired         = "CURSOR_EXPIRED"
	ReasonMailServerNotFound    = "MAIL_SERVER_NOT_FOUND"
	ReasonOperationNotFound     = "OPERATION_NOT_FOUND"
	ReasonMailNotFound          = "MAIL_NOT_FOUND"
	ReasonLegalHoldNotFound     = "LEGAL_HOLD_NOT_FOUND"
	ReasonContentRemoved        = "CONTENT_REMOVED"
	ReasonLegalHold             = "LEGAL_HOLD"
	ReasonAddressInUse          = "ADDRESS_IN_USE"
	ReasonBatchNotFound         = "BATCH_NOT_FOUND"
	ReasonUploadNotFound        = "UPLOAD_NOT_FOUND"
	ReasonMailServerExists      = "MAIL_SERVER_EXISTS"
	ReasonRequestIDReused       = "REQUEST_ID_REUSED"
	ReasonNoDefaultMailServer   = "NO_DEFAULT_MAIL_SERVER"
	ReasonMailServerUnavailable = "MAIL_SERVER_UNAVAILABLE"
	ReasonDefaultExists         = "DEFAULT_EXISTS"
	ReasonMailsPending          = "MAILS_PENDING"
	ReasonMailServerInUse       = "MAIL_SERVER_IN_USE"
	ReasonMailServerDeleted     = "MAIL_SERVER_DELETED"
	ReasonMailServerNotDeleted  = "MAIL_SERVER_NOT_DELETED"
	ReasonWrongState            = "WRONG_STATE"
	ReasonDamaged               = "DAMAGED"
	ReasonETagMismatch          = "ETAG_MISMATCH"
	ReasonMailTooLarge          = "MAIL_TOO_LARGE"
	ReasonOverloaded            = "OVERLOADED"
	ReasonQuotaExceeded         = "QUOTA_EXCEEDED"
	ReasonOwnRelease            = "OWN_RELEASE"
	ReasonDatabaseUnavailable   = "DATABASE_UNAVAILABLE"
	ReasonDraining              = "DRAINING"
	ReasonDeadlineTooShort      = "DEADLINE_TOO_SHORT"
	ReasonTokenRefused          = "TOKEN_REFUSED"
	ReasonRoleMissing           = "ROLE_MISSING"
	ReasonTeamNotYours          = "TEAM_NOT_YOURS"
	ReasonTokenBound            = "TOKEN_BOUND"
	ReasonTokenNotFound         = "TOKEN_NOT_FOUND"
	ReasonOldReplica            = "OLD_REPLICA"
	ReasonInternal              = "INTERNAL"
)
