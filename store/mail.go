package store

import (
	"time"

	"github.com/google/uuid"
)

// Kind is what a mail is for.
type Kind string

const (
	KindAgentMessage Kind = "agent_message"
	KindInvoice      Kind = "invoice"
	KindWorkOrder    Kind = "work_order"
	KindBulk         Kind = "bulk"
	KindOther        Kind = "other"
)

// MailStatus is the state of a whole mail.
type MailStatus string

const (
	MailQueued        MailStatus = "queued"
	MailSending       MailStatus = "sending" // never stored: a due row with a mark
	MailDeferred      MailStatus = "deferred"
	MailHeld          MailStatus = "held"
	MailFailed        MailStatus = "failed"
	MailUnknown       MailStatus = "unknown"
	MailPartiallySent MailStatus = "partially_sent"
	MailSent          MailStatus = "sent"      // archive
	MailCancelled     MailStatus = "cancelled" // archive
)

// RecipientStatus is the state of one recipient.
type RecipientStatus string

const (
	RecipientPending  RecipientStatus = "pending"
	RecipientAccepted RecipientStatus = "accepted"
	RecipientDeferred RecipientStatus = "deferred"
	RecipientRejected RecipientStatus = "rejected"
	RecipientUnknown  RecipientStatus = "unknown"
)

// Recipient is one address of a mail, in the order to, cc, bcc.
type Recipient struct {
	Mailbox string `json:"a"`           // as it goes on the wire
	Kind    string `json:"k,omitempty"` // "" = to, "cc", "bcc"
}

// RecipientResult is what is known of the recipient at the same position.
type RecipientResult struct {
	Status      RecipientStatus `json:"s"`
	Code        int             `json:"c,omitempty"`
	Enhanced    string          `json:"e,omitempty"`
	Detail      string          `json:"d,omitempty"`
	RemoteID    string          `json:"q,omitempty"`
	Failure     string          `json:"f,omitempty"` // its class, a word of smtpx.Failure
	Attempt     int             `json:"n,omitempty"`
	Time        time.Time       `json:"t,omitzero"`
	NextAttempt time.Time       `json:"w,omitzero"`
	// unknown, and only a person's word sends to it again
	Held bool `json:"h,omitempty"`
}

// Attempt is one try to deliver a mail.
type Attempt struct {
	Number int       `json:"n"`
	Start  time.Time `json:"t"`
	End    time.Time `json:"u,omitzero"`
	Server string    `json:"m"`
	// sent, partial, deferred, failed, unknown, server (the server's fault: cost nothing)
	Outcome  string `json:"o,omitempty"`
	Detail   string `json:"d,omitempty"`
	RemoteID string `json:"q,omitempty"`
}

// Progress is what happened to a mail so far. Results is empty (all pending) or as long as the
// recipients.
type Progress struct {
	Results  []RecipientResult `json:"r,omitempty"`
	Attempts []Attempt         `json:"a,omitempty"` // the newest 20
}

// Content is bytes that many mails share: stored once, by its sum.
type Content struct {
	Sum  [32]byte // SHA-256 of the bytes
	Size int
	File bool   // an attachment, which may be removed before the text around it
	Data []byte // nil: stored already, known only by its sum
}

// Piece is a run of the raw message: its own bytes, or a range of shared content.
type Piece struct {
	Data           []byte // own bytes; nil with Shared
	Shared         *Content
	Offset, Length int // of the range, with Shared
}

// ReplicaID names one run of one process; never reused. 0 = nobody.
type ReplicaID int64

// NewMail is a mail to be made durable.
type NewMail struct {
	ID          uuid.UUID // version 7
	Team        string
	MailServer  string
	Mode        Mode
	Kind        Kind
	Priority    int16
	Reference   string
	From        string // bare mailbox of the envelope and header
	Subject     string
	MessageID   string // without <>
	SizeBytes   int64
	Recipients  []Recipient
	Labels      map[string]string
	RequestID   string // "" = none
	Fingerprint []byte // of the request's content; needed with RequestID
	Route       string // named, team_default, system_default
	UTF8        bool   // the header needs SMTPUTF8
	CreateTime  time.Time
	RunAt       time.Time  // when it is due; usually CreateTime
	ExpireTime  *time.Time // never sent after it
	Raw         []Piece
	BatchID     string    // "" = none
	ResentFrom  uuid.UUID // the mail that this one sends once more; zero = none
	Reason      string    // why, with ResentFrom
	Caller      string    // whose it is; "" = of a caller that nobody asked
	Trace       []byte    // of the call that brought it, for who makes spans; nil = none
	// of the token that hands it over; nil = without one. It is not stored.
	Budget *Budget

	Owner ReplicaID // not 0: born claimed by this replica (php mode)
	// RetryInBatch, with Owner: see Claimed. It is not stored.
	RetryInBatch bool
	Held         string // not "": born held, and why
	Guard        string // with Held: the budget that has held it; Caller must not release it
	// with ResentFrom: so many recipients, the last ones, did not get that mail
	Added int
	// a row of the audit log in the same transaction; only EnqueueAll writes it
	Audit *Audit

	// ServerVersion, when it is not 0, is the version of the mail server that the mail was
	// routed to: if it is another by now, the mail is refused with ErrServerChanged.
	ServerVersion int64

	inline, layout []byte     // Raw as it is stored; made by pack
	contents       [][32]byte // the shared content of Raw, each once; made by pack
}

// OwnBytes is what the mail weighs without what it shares with others.
func (m *NewMail) OwnBytes() int64 {
	n := 0
	for _, p := range m.Raw {
		n += len(p.Data)
	}
	return int64(n)
}

// Claimed is the mail as a claim would return it, once it was enqueued.
func (m *NewMail) Claimed(holdUnknown bool) *Claimed {
	m.pack()
	return &Claimed{ID: m.ID, Team: m.Team, MailServer: m.MailServer, Mode: m.Mode, Kind: m.Kind, Priority: m.Priority, From: m.From,
		MessageID: m.MessageID, SizeBytes: m.SizeBytes, UTF8: m.UTF8, Recipients: m.Recipients, CreateTime: m.CreateTime, RunAt: m.RunAt,
		ExpireTime: m.ExpireTime, Reference: m.Reference, Caller: m.Caller, Trace: m.Trace, HoldUnknown: holdUnknown, RetryInBatch: m.RetryInBatch, Raw: m.inline, Layout: m.layout, Claim: BornClaim}
}

// BornClaim is the token of a mail that is born owned.
const BornClaim = 1

// Enqueued answers one NewMail.
type Enqueued struct {
	ID        uuid.UUID // the first one's when Duplicate
	Duplicate bool
	// ErrRequestIDReused, or a data error of this mail alone; nothing of it was stored
	Err error
}

// Claimed is a mail this replica may send.
type Claimed struct {
	ID         uuid.UUID
	Team       string
	MailServer string
	Mode       Mode
	Kind       Kind
	Priority   int16
	From       string
	MessageID  string
	SizeBytes  int64
	UTF8       bool
	Recipients []Recipient
	Progress   Progress
	Attempts   int // that counted
	// owners in a row that died: the first while it held the mail, the others while they were
	// at it, less those that died of something else
	Crashes    int
	CreateTime time.Time
	RunAt      time.Time
	ExpireTime *time.Time
	Reference  string
	Caller     string // see NewMail
	Trace      []byte // see NewMail

	PossibleDuplicate bool
	// RetryInBatch, of a mail that was born owned: its caller wants it to go on in the batch
	// where it fails for now. It is not stored: who finds the mail without its owner sends it
	// in the batch in any case.
	RetryInBatch bool
	HoldUnknown  bool // its mail server holds mail of every kind whose outcome is unknown
	// only from Recover: the dot may have left for the first MaxRecipients pending recipients
	Marked bool
	// only from Recover: its dead owner had recorded that it was at this mail (SettleBegin)
	Begun bool

	// Claim is the token of this ownership: every write of its owner carries it, and none
	// counts under another one. Each claim and each adoption raises it.
	Claim int64

	Raw    []byte // the whole message, or nil when it has shared pieces: see Store.LoadRaw
	Layout []byte // how Raw is made of pieces; nil = Raw is whole
}

// SettleKind is one kind of write to a claimed mail. The statements know these words.
type SettleKind string

const (
	// the dot is about to leave: durable before it does
	SettleMark SettleKind = "mark"
	// results so far: clears the mark and raises the token by one; Status "" keeps what would
	// be there without the claim
	SettleProgress SettleKind = "progress"
	// finished: Status sent or cancelled; moves to the archive
	SettleArchive SettleKind = "archive"
	// stays in the due-out journal with Status, not claimable
	SettlePark SettleKind = "park"
	// claimable again from RunAt on, with Status queued, deferred or partially_sent
	SettleRetry SettleKind = "retry"
	// Crashes only: what it counts if this owner dies as well
	SettleBegin SettleKind = "begin"
	// parked with Status and LastError; all else stays as it is, because it cannot be read
	settleUnreadable SettleKind = "unreadable"
)

// Settlement is one conditional write to a mail that Owner has under the token Claim.
// SettleProgress raises the token, so the owner's next write carries Claim+1: the next
// transaction's mark must not fall to the progress of the one before, should that be delivered
// once more behind it.
type Settlement struct {
	ID                uuid.UUID
	Owner             ReplicaID
	Claim             int64
	Kind              SettleKind
	Status            MailStatus
	RunAt             time.Time
	Attempts          int
	Crashes           int // SettleBegin, SettlePark, SettleRetry
	Progress          *Progress
	PossibleDuplicate bool
	LastError         string
	Quick             bool // somebody waits for it: not behind what the batch hands over
}

// Settled answers a Settlement. Mine == false: the mail is not the owner's under this token any
// more, nothing was written. A result that is handed over a second time is written once and
// answered like the first time, until somebody else has the mail.
type Settled struct {
	Mine bool
	Err  error
}

// Mail is what people read of one mail. Raw is read apart.
type Mail struct {
	ID                uuid.UUID
	Team              string
	MailServer        string
	Mode              Mode
	Kind              Kind
	Reference         string
	Status            MailStatus
	From              string
	Subject           string
	MessageID         string
	SizeBytes         int64
	Recipients        []Recipient
	Progress          Progress
	Labels            map[string]string
	RequestID         string
	BatchID           string
	ResentFrom        uuid.UUID // zero = none
	ResendReason      string
	Route             string
	Attempts          int
	PossibleDuplicate bool
	LastError         string
	Priority          int16
	CreateTime        time.Time
	DueTime           *time.Time // next try; nil = being sent, parked or finished
	ResumeTime        *time.Time // held: when it would be due; nil = at once
	ExpireTime        *time.Time
	FinishTime        *time.Time
	Archived          bool
	Caller            string    // whose it is; "" = of a caller that nobody asked
	Guard             string    // the budget that has held it; "" = none, or it was released
	Owner             ReplicaID // 0 = nobody
	// a part of its row cannot be read, and is missing here: nobody may write the mail anew
	Unreadable error
	Marked     bool    // with an owner: the dot may have left
	Removed    Removed // what of its content was removed; "" = nothing
}

// MailFilter is an AND of its set fields.
type MailFilter struct {
	Team       *string
	MailServer string
	Statuses   []MailStatus
	Kind       Kind
	Reference  string
	Recipient  string // mailbox; compared without case
	MessageID  string // with or without <>
	Labels     map[string]string
	RequestID  string
	BatchID    string
	Since      time.Time // created at or after
	Until      time.Time // created before
}

// Cursor is a keyset position: the last row of the page before. Zero = start.
type Cursor struct {
	Time time.Time
	ID   uuid.UUID
}

// Change is what a person's word does to a due mail.
type Change struct {
	Kind              SettleKind // SettleArchive, SettlePark or SettleRetry
	Status            MailStatus
	RunAt             time.Time
	ResumeAt          time.Time // with MailHeld: when it would be due
	Attempts          int
	Progress          *Progress
	PossibleDuplicate bool
	LastError         string
	MailServer        string         // goes on through this one; "" = through the one it has
	Detail            map[string]any // for the audit row; only ModifyMail writes it
	// also a mail that a replica has and has not marked: it is taken from it
	Stops bool
	// the guard has held the mail, and a second person lets it go: Guard is empty from then on
	Unguards bool
}

// ModifyFailure says why one selected mail was not changed.
type ModifyFailure struct {
	ID  uuid.UUID
	Err error
}
