"""Languages, words, and which words are the same."""

# ruff: noqa: RUF001  (letters of other scripts are what is tested)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coevolve.teachers.languages import content_words, keys, language_of, words

SENTENCES = {
    "English": "I would love to see the mountains with you.",
    "German": "Ich habe gestern ein neues Fahrrad gekauft, und du?",
    "French": "je n'ai jamais vu la mer, mais j'aimerais bien.",
    "Italian": "mi piace andare in bicicletta con i miei amici",
    "Spanish": "¿Qué haces los fines de semana? Yo voy a la playa.",
    "Portuguese": "Eu não gosto muito de café, mas você pode beber.",
    "Indonesian": "saya tidak suka kopi, tapi saya minum teh setiap hari",
    "Dutch": "Ik heb een hond en mijn zus heeft twee katten.",
    "Russian": "Я люблю гулять по городу ночью.",
    "Ukrainian": "Я люблю свій дім і своїх друзів.",
    "Arabic": "أنا أحب القهوة في الصباح",
    "Persian": "من چای را بیشتر دوست دارم",
    "Greek": "Μου αρέσει πολύ η θάλασσα",
    "Hebrew": "אני אוהב לקרוא ספרים",
    "Hindi": "मुझे किताबें पढ़ना पसंद है",
    "Thai": "ฉันชอบอ่านหนังสือ",
    "Chinese": "我每天早上喝咖啡。",
    "Japanese": "毎朝コーヒーを飲みます。",
    "Korean": "나는 매일 아침 커피를 마셔.",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_a_plain_sentence_is_recognised_without_context(language):
    assert language_of(SENTENCES[language]) == language


# None of these has a name here.
UNTRIED = {
    "Polish": ("Lubię spacerować po mieście w nocy.", "Nie wiem, co on o tym myśli."),
    "Czech": ("Rád chodím do kina s přáteli.", "Nevím, co si o tom myslí."),
    "Slovak": ("To je veľmi zaujímavé, čo robíš zajtra?", "Kde je tu stanica?"),
    "Hungarian": ("Szeretek éjszaka sétálni a városban.", "A nevem Anna, és Budapesten élek."),
    "Finnish": (
        "Se on todella mielenkiintoista, mitä teet huomenna?",
        "Nimeni on Anna ja asun Helsingissä.",
    ),
    "Swedish": ("Jag tycker om att gå på promenad.", "Vi ses i morgon, hej då."),
    "Danish": (
        "Jeg kan godt lide at gå en tur om aftenen.",
        "Min hund hedder Max, og den elsker mad.",
    ),
    "Norwegian": ("Det er veldig interessant, hva gjør du i morgen?", "Hvor er stasjonen?"),
    "Icelandic": ("Mér finnst gaman að ganga um borgina á kvöldin.",),
    "Romanian": (
        "Este foarte interesant, ce faci mâine?",
        "Nu am timp de asta acum, dar vin mai tarziu.",
    ),
    "Turkish": ("Bu çok ilginç, yarın ne yapıyorsun?", "Ben de seni seviyorum, bu bir kitap."),
    "Vietnamese": ("Tên tôi là Lan và tôi sống ở Hà Nội.", "Xin chao, ban co khoe khong?"),
    "Croatian": ("Ne znam gdje je on, ali ja sam doma.", "Zovem se Ana i živim u Zagrebu."),
    "Slovenian": ("To je zelo zanimivo, kaj delaš jutri?", "Hvala, dobro sem."),
    "Lithuanian": ("Man patinka vaikščioti po miestą naktį.",),
    "Latvian": ("Tas ir ļoti interesanti, ko tu darīsi rīt?", "Paldies, man iet labi."),
    "Estonian": ("See on väga huvitav, mida sa homme teed?",),
    "Catalan": (
        "M'agrada passejar per la ciutat de nit.",
        "Em dic Anna i visc a Barcelona amb la meva germana.",
    ),
    "Galician": ("É moi interesante, que fas mañá?", "Gústame pasear pola cidade pola noite."),
    "Basque": ("Oso interesgarria da, zer egingo duzu bihar?",),
    "Welsh": ("Rwy'n hoffi cerdded yn y ddinas yn y nos.",),
    "Irish": ("Is maith liom siúl sa chathair san oíche.",),
    "Albanian": ("Kjo është shumë interesante, çfarë bën nesër?",),
    "Tagalog": (
        "Gusto kong maglakad sa lungsod sa gabi.",
        "Ang pangalan ko ay Ana at nakatira ako sa Maynila.",
    ),
    "Swahili": ("Jina langu ni Ana na ninaishi Nairobi.", "Ninapenda kutembea mjini usiku."),
    "Afrikaans": (
        "Dit is baie interessant, wat doen jy môre?",
        "My naam is Anna en ek woon in Kaapstad.",
    ),
    "Esperanto": ("Mi ŝatas promeni en la urbo dum la nokto.",),
    "Latin": ("Noctu per urbem ambulare mihi placet.", "Heri librum novum emi."),
    "Yoruba": ("Ó dára gan-an, kí ni o máa ṣe lọ́la?",),
    "Zulu": ("Ngithanda ukuhamba edolobheni ebusuku.",),
    "Hausa": ("Ina son yin yawo a cikin gari da dare.",),
    "Kurdish": ("Ez ji meşa şevê ya li bajêr hez dikim.",),
    "Bulgarian": ("Това е много интересно, какво правиш утре?", "Казвам се Ана и живея в София."),
    "Serbian": ("То је веома занимљиво, шта радиш сутра?", "Где је станица?"),
    "Belarusian": ("Я люблю гуляць па горадзе ўначы.",),
    "Kazakh": ("Бұл өте қызық, ертең не істейсің?",),
    "Mongolian": ("Энэ их сонирхолтой, маргааш чи юу хийх вэ?",),
    "Urdu": ("یہ بہت دلچسپ ہے، تم کل کیا کرو گے؟",),
    "Pashto": ("دا ډېر په زړه پورې دی، سبا به څه کوې؟",),
    "Marathi": ("हे खूप मनोरंजक आहे, तू उद्या काय करणार आहेस?",),
    "Nepali": ("मलाई राति सहरमा हिँड्न मन पर्छ।",),
    "Yiddish": ("איך האָב ליב צו שפּאַצירן אין שטאָט בײַ נאַכט.",),
    "Bengali": ("আমি রাতে শহরে হাঁটতে ভালোবাসি।",),
    "Georgian": ("მე მიყვარს ღამით ქალაქში სეირნობა.",),
    "Khmer": ("ខ្ញុំចូលចិត្តដើរលេងក្នុងទីក្រុងនៅពេលយប់។",),
}


@pytest.mark.parametrize("language", UNTRIED)
def test_a_language_without_a_name_here_gets_no_wrong_one(language):
    """Malay is not among them: it is taken for Indonesian."""
    for sentence in UNTRIED[language]:
        assert language_of(sentence) == "unknown"
        # Few words are taken for those of their context.
        assert (
            len(sentence.split()) < 5
            or language_of(sentence, SENTENCES["English"] * 3) == "unknown"
        )


@pytest.mark.parametrize("language", SENTENCES)
def test_a_name_in_another_languages_letters_changes_nothing(language):
    assert language_of(f"{SENTENCES[language]} Łucja") == language


def test_too_little_text_is_decided_by_its_context():
    assert language_of("Ok, Madrid.", "ich bin ein Koch und wohne nicht in der Stadt") == "German"
    assert (
        language_of("Ok, Madrid.", "je suis un cuisinier et je ne vis pas dans la ville")
        == "French"
    )


def test_a_clear_text_overrules_its_context():
    assert language_of(SENTENCES["Spanish"], SENTENCES["English"] * 5) == "Spanish"


def test_text_without_letters_is_unknown_or_as_its_context():
    assert language_of("?! 42") == "unknown"
    assert language_of("?! 42", SENTENCES["Korean"]) == "Korean"


@pytest.mark.parametrize(
    "language", ["chinese", "japanese", "korean", "french", "italian", "indonesian"]
)
def test_real_responses_in_other_languages(corpus, language):
    rows = corpus.subsets("OOD1Test")[language]
    right = sum(
        language_of(row.golden_response, " ".join(turn.text for turn in row.dialogue))
        == language.capitalize()
        for row in rows
    )
    alone = sum(language_of(row.golden_response) == language.capitalize() for row in rows)
    assert right >= 0.97 * len(rows)
    assert alone >= 0.90 * len(rows)


def test_real_english_responses(corpus):
    rows = corpus.splits["IDTest"]
    assert sum(language_of(row.golden_response) == "English" for row in rows) >= 0.95 * len(rows)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cats", "cat"),
        ("running", "runs"),
        ("loved", "love"),
        ("hobbies", "hobby"),
        ("책을", "책이"),
        ("看电影", "电影"),
    ],
)
def test_forms_of_one_word_share_a_key(one, other):
    assert keys(one) & keys(other)


@pytest.mark.parametrize(
    ("one", "other"), [("cat", "car"), ("bread", "brother"), ("猫", "狗"), ("ring", "rung")]
)
def test_different_words_share_none(one, other):
    assert not keys(one) & keys(other)


def test_words_keep_marks_and_numbers_together():
    assert words("Zoë's 12 co-workers, हिन्दी!", "English") == [
        "Zoë",
        "s",
        "12",
        "co-workers",
        "हिन्दी",
    ]


def test_content_words_leave_grammar_out():
    assert content_words("I don't have the time to bake bread, bread!", "English") == [
        "time",
        "bake",
        "bread",
    ]
    assert content_words("je n'ai pas de chat", "French") == ["chat"]
    assert content_words("我喜欢吉他和电影", "Chinese") == ["吉他", "电影"]
    assert content_words("私はペットと映画が好きです", "Japanese") == ["ペット", "映画"]


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_has_a_language_and_words_that_stand_in_it(text, context):
    language = language_of(text, context)
    assert language
    for word in content_words(text, language):
        assert word in text
        assert keys(word)
