"""Phrases by which speech acts and moods are known.

Cues are regular expressions on normalised text: lower case, words apart by one space, no
punctuation (`that's` is `that s`). The table is small on purpose. A phrase that it lacks costs a
vaguer label, never a malformed trace.
"""

# ruff: noqa: RUF001  (letters of other scripts are what this file is about)

from collections.abc import Mapping

OPENING_ACTS = ("thank", "apologise", "greet", "take leave", "agree", "deny", "react")
"""Acts that open a sentence: matched at its start, in this order."""

MAIN_ACTS = ("advise", "wish", "about self", "about user")
"""What the rest of a sentence does: matched anywhere, in this order."""

# Under a language's name a line for each act; `ask` is a question that a missing question mark does
# not hide, `pleased` and `downcast` tell a speaker's mood. What stands deeper goes on with a line.
_TABLE = r"""
English
  thank: (no |yes )?(oh )?(thanks|thank (you|thee)|i appreciate)
  apologise: (oh )?(i m (so )?sorry|i am (so )?sorry|sorry|i apologi[sz]e|pardon|forgive)
  greet: hi|hello|hey|good (morning|day|evening|morrow)|nice to meet|pleased to meet|welcome|hail
  take leave: bye|goodbye|farewell|adieu|see you|talk to you|take care|good night|fare you well
  agree: (oh )?(yes|yeah|yep|yup|sure|exactly|absolutely|definitely|of course|i agree|me too|same here|right|
    true|that s (true|right)|you re right|i know|aye|ay|indeed|i (do|am|have|did|can|will|would)$|so do i|
    it (is|does|was)|ok|okay|no problem)
  deny: no|nope|nah|nay|not (really|yet|at all)|i don t think so|never|i (do not|don t|haven t|can t)$
  react: (oh )?(wow|cool|nice|great|awesome|amazing|interesting|congratulations|oh|ah|haha|good for you|(that|
    this|those|these)( all)?( s| is| are| was| must be| sounds?| looks?)( so| such| a| an| really| very| pretty|
     like| lot of)* (great|cool|awesome|amazing|interesting|nice|good|wonderful|fun|sweet|neat|fantastic|
    impressive|fascinating|exciting|lovely|perfect|delicious|beautiful|awful|terrible|bad|sad|tough|hard|
    too bad)|it( s| is| was)( so| such| a| an| really| very| pretty| lot of)* (great|cool|awesome|amazing|fun|
    good|nice)$|(that|it|those|these|this)( all)? sounds?|sounds|i (bet|can imagine|understand|see)|how (cool|
    nice|lovely|exciting|interesting))
  advise: (you|we) should|you (could|might want|have to|need to|must)|you ll have to|^let s|^try|check (it|
    them) out|why don t you|i (suggest|recommend)
  wish: good luck|i hope|hope you|have (fun|a (good|great|nice))|enjoy|god save|i wish you
  about self: i|my|me|we|our|mine|myself
  about user: you|your|yours|thou|thee|thy
  pleased: love|loved|loves|great|awesome|amazing|fun|happy|glad|excited|cool|wonderful|nice|best|favorite|
    enjoy|beautiful|fantastic|good|thanks|thank|sweet|perfect|delicious
  downcast: sorry|sad|died|dead|death|hate|awful|terrible|unfortunately|lonely|miss|alas|weep|grief|afraid|sick
German
  thank: vielen dank|danke
  apologise: es tut mir leid|tut mir leid|entschuldig|verzeih
  greet: hallo|hi|hey|guten (morgen|tag|abend)|willkommen
  take leave: tschüss|auf wiedersehen|bis (bald|dann|später)|gute nacht
  agree: ja|klar|genau|natürlich|stimmt|sicher|ich auch|gerne
  deny: nein|nö|nicht wirklich|noch nicht|niemals
  react: wow|oh|toll|cool|super|schön|interessant|das (ist|klingt|hört sich)
  advise: du solltest|sie sollten|du könntest|versuch|probier
  wish: viel (glück|spaß)|ich hoffe|hoffentlich
  about self: ich|mein|meine|meinen|meiner|mich|mir|wir|unser|unsere
  about user: du|dein|deine|dich|dir
  pleased: liebe|toll|super|schön|glücklich|freue|gern|gerne|wunderbar|spaß|gut|danke
  downcast: leid|traurig|gestorben|tot|hasse|schrecklich|leider|einsam|vermisse
French
  thank: merci
  apologise: désolée?|je suis désolée?|pardon|excuse
  greet: bonjour|salut|bonsoir|coucou|bienvenue|enchantée?
  take leave: au revoir|à (bientôt|plus|demain)|bonne nuit|adieu
  agree: oui|ouais|bien sûr|d accord|exactement|moi aussi|c est vrai|tout à fait|je suis d accord
  deny: non|pas (encore|vraiment|du tout)|jamais
  react: wow|oh|ah|super|génial|cool|sensationnel|intéressant|félicitations|c est (bien|super|génial|cool|
    incroyable|intéressant|bon|triste|gentil)|cela (semble|ressemble)|ça (semble|ressemble|a l air)|j imagine
  advise: (tu devrais|vous devriez|tu dois|vous devez)|essaie|essayez|il faut
  wish: bonne chance|j espère|amuse toi|bon courage
  about self: je|j|mon|ma|mes|moi|me|nous|notre|nos
  about user: tu|vous|ton|ta|tes|votre|vos|toi
  pleased: (?<!n )aime|adore|super|génial|heureux|heureuse|content|contente|bien|beau|belle|bon|bonne|merci|
    amusant
  downcast: désolé|désolée|triste|mort|morte|décédé|déteste|horrible|malheureusement|mal
Italian
  thank: grazie
  apologise: mi dispiace|scusa|scusami|perdonami
  greet: ciao|salve|buongiorno|buonasera|benvenut[oa]|piacere
  take leave: arrivederci|addio|a (presto|dopo|domani)|buonanotte
  agree: sì|si|certo|esatto|certamente|anch io|anche io|è vero|ok|d accordo|sono d accordo
  deny: no|non ancora|non proprio|mai
  react: wow|oh|ah|bello|fantastico|grande|bene|ottimo|interessante|fico|forte|che (bello|bella|forte|figata)|
    (è|sembra) (molto )?(un |una )?(bello|bella|fantastico|interessante|buon|buono|divertente|grande|ottim[oa])|
    sembra
  advise: dovresti|dovreste|potresti|prova|devi
  wish: buona fortuna|spero|divertiti|in bocca al lupo
  about self: io|mi|mio|mia|miei|mie|me|sono|ho|ero|lavoro|vivo|amo|adoro|vado|faccio|vorrei|voglio|posso|penso|
    preferisco|odio|leggo|abbiamo|siamo|noi|nostro|nostra
  about user: tu|ti|tuo|tua|tuoi|tue|hai|sei
  pleased: amo|adoro|(?<!non mi )piace|piacciono|bello|bella|fantastico|felice|contento|contenta|bene|
    divertente|grazie
  downcast: dispiace|triste|morto|morta|morti|odio|terribile|purtroppo|male
Spanish
  thank: muchas gracias|gracias
  apologise: lo siento|perdón|perdona|disculpa
  greet: hola|buenos días|buenas (tardes|noches)|bienvenid[oa]|encantad[oa]
  take leave: adiós|hasta (luego|pronto|mañana)|nos vemos
  agree: sí|si|claro|exacto|por supuesto|yo también|es verdad|de acuerdo|vale
  deny: no|todavía no|nunca|tampoco
  react: guau|wow|oh|ah|genial|qué (bien|bueno|interesante|guay|bonito)|eso (es|suena)|suena|felicidades
  advise: deberías|debería|tienes que|prueba|podrías
  wish: buena suerte|espero|ojalá|diviértete
  about self: yo|me|mi|mis|soy|estoy|tengo|vivo|trabajo|quiero|voy|puedo|he|nosotros|nuestro
  about user: tú|tu|te|tus|eres|tienes|usted
  pleased: amo|encanta|(?<!no me )gusta|genial|feliz|contento|contenta|bueno|buena|bonito|divertido|gracias
  downcast: siento|triste|murió|muerto|odio|terrible|desgraciadamente|mal
Portuguese
  thank: muito obrigad[oa]|obrigad[oa]
  apologise: desculpe?|sinto muito|perdão|lamento
  greet: olá|oi|bom dia|boa (tarde|noite)|bem vind[oa]|prazer
  take leave: tchau|adeus|até (logo|breve|amanhã)
  agree: sim|claro|exatamente|com certeza|eu também|é verdade|concordo
  deny: não|ainda não|nunca
  react: uau|oh|ah|legal|ótimo|que (bom|legal|interessante)|isso (é|parece)|parece|parabéns
  advise: você deveria|devias|deveria|tente|experimente
  wish: boa sorte|espero|divirta se
  about self: eu|me|meu|minha|meus|minhas|sou|estou|tenho|moro|gosto|quero|vou|posso|nós|nosso
  about user: você|tu|seu|sua|teu|tua
  pleased: amo|adoro|gosto|ótimo|feliz|contente|bom|boa|lindo|divertido|obrigado|obrigada
  downcast: sinto muito|triste|morreu|morto|odeio|terrível|infelizmente|mal
Indonesian
  thank: terima kasih|makasih
  apologise: maaf|saya minta maaf|mohon maaf
  greet: halo|hai|hei|selamat (pagi|siang|sore|malam|datang)|senang bertemu
  take leave: sampai (jumpa|nanti)|selamat tinggal|dadah
  agree: ya|iya|tentu|benar|betul|setuju|saya juga|pasti|baiklah|oke|ok
  deny: tidak|belum|bukan|enggak|nggak|tak pernah
  react: wow|wah|oh|keren|hebat|bagus|luar biasa|menarik|selamat|kedengarannya|terdengar|itu (sangat )?(bagus|
    keren|hebat|menarik|luar biasa|menyenangkan|baik|terdengar)
  advise: (anda|kamu) (harus|sebaiknya|bisa)|cobalah|coba|sebaiknya
  wish: semoga|selamat (menikmati|bersenang)|saya harap
  about self: saya|aku|kami|kita|ku
  about user: anda|kamu|kau|mu
  pleased: (?<!tidak )suka|cinta|bagus|hebat|keren|senang|bahagia|indah|menyenangkan|luar biasa|terima kasih
  downcast: maaf|sedih|meninggal|mati|benci|buruk|sayangnya|kesepian
Dutch
  thank: dank je|bedankt|dankjewel|dank u
  apologise: sorry|het spijt me|excuseer
  greet: hallo|hoi|hey|goede(morgen|middag|navond)|welkom
  take leave: doei|tot (ziens|straks|morgen)|dag
  agree: ja|zeker|precies|natuurlijk|ik ook|klopt|inderdaad
  deny: nee|nog niet|niet echt|nooit
  react: wauw|oh|leuk|mooi|cool|geweldig|interessant|dat (is|klinkt)|gefeliciteerd
  advise: je (moet|zou)|probeer
  wish: veel (succes|plezier)|ik hoop
  about self: ik|mijn|mij|me|wij|we|ons|onze
  about user: je|jij|jouw|jou|u|uw
  pleased: hou|leuk|mooi|geweldig|blij|fijn|goed|bedankt
  downcast: spijt|verdrietig|dood|haat|vreselijk|helaas|eenzaam
Russian
  thank: большое спасибо|спасибо|благодарю
  apologise: извини|прости|мне жаль|сожалею
  greet: привет|здравствуй|доброе утро|добрый (день|вечер)
  take leave: пока|до (свидания|встречи|завтра)|спокойной ночи
  agree: да|конечно|точно|верно|согласен|согласна|я тоже|хорошо
  deny: нет|ещё нет|никогда|не совсем
  react: вау|ого|ух ты|здорово|круто|отлично|интересно|это (здорово|круто|интересно|звучит)|поздравляю
  advise: тебе (стоит|следует|нужно)|попробуй|советую
  wish: удачи|надеюсь|желаю
  about self: я|мне|меня|мой|моя|моё|мои|мы|нас|наш|наша
  about user: ты|тебя|тебе|твой|твоя|вы|вас|ваш
  pleased: люблю|отлично|здорово|круто|рад|рада|счастлив|хорошо|нравится|спасибо
  downcast: жаль|грустно|умер|умерла|ненавижу|ужасно|плохо
Chinese
  thank: 谢谢|多谢|感谢
  apologise: 对不起|抱歉|不好意思|很遗憾
  greet: 你好|您好|嗨|早上好|晚上好|早安|欢迎
  take leave: 再见|拜拜|晚安|回头见
  agree: 是的|是啊|对|当然|好的|没错|我也|嗯|可以|同意
  deny: 不是|没有|不$|不 |还没|从不|并不
  react: 哇|哦|噢|太[好棒酷]|真[好棒的]|好[棒酷]|很[好棒酷有]|那[很太真]|听起来|有趣|不错|恭喜|这[很太真]
  advise: 你应该|您应该|你可以|你要|试试|建议
  wish: 祝|希望你|加油
  about self: 我|咱
  about user: 你|您
  ask: ([吗嗎呢]|什么)$
  pleased: (?<!不)喜欢|(?<!不)爱|太好|很好|真好|棒|开心|高兴|有趣|不错|酷|谢谢|幸运
  downcast: 难过|糟糕|抱歉|死|讨厌|可怕|遗憾|不幸|孤独|痛
Japanese
  thank: ありがとう|感謝
  apologise: すみません|ごめん|申し訳|残念
  greet: こんにちは|こんばんは|おはよう|はじめまして|やあ|ようこそ
  take leave: さようなら|またね|じゃあね|おやすみ
  agree: はい|ええ|うん|そうです|そうですね|もちろん|私も|確かに|同意
  deny: いいえ|いや|まだ|違い
  react: わあ|うわ|ああ|おお|へえ|すごい|素晴らしい|すばらしい|面白|おもしろ|かっこい|クール|いいですね|
    良いですね|それは(とても|本当に|すごく)?(いい|良い|素晴らしい|すごい|面白|クール|素敵|悪)
  advise: べき|ほうがいい|方がいい|してみて|しましょう
  wish: 頑張って|願って|楽しんで|といいですね
  about self: 私|僕|俺|わたし|たいです|です$|ます$|ました$|ません$
  about user: あなた|お子さん
  ask: (です|ます|ました|ません|でしょう)か$
  pleased: 好き|大好き|楽し|嬉し|うれし|素晴らしい|すばらしい|すごい|面白|いいですね|ありがとう|素敵
  downcast: 残念|悲し|死|嫌い|ひどい|寂し|すみません|痛
Korean
  thank: 고마워|고맙|감사
  apologise: 미안|죄송|유감
  greet: 안녕|반가워|만나서|환영
  take leave: 잘 가|잘가|또 봐|안녕히
  agree: 응|네 |네$|예 |예$|그래|맞아|물론|당연|나도|동의
  deny: 아니|아직|전혀
  react: 와우|좋아|와 |오 |우와|대단|멋지|멋있|흥미|재미|훌륭|축하|(그것은|그거|정말|참) (정말 |매우 |
    아주 )?(좋|멋|대단|흥미|재미|훌륭|나쁘|슬프)
  advise: 해야 해|해봐|하는 게 좋|해 봐|넌 .*야 해
  wish: 행운|바라|바래|기원
  about self: 나는|난|나도|나의|나를|나에게|내가|내|저는|제가|제|우리
  about user: 너|넌|네|당신
  ask: (니|까|나요|가요|을까)$
  pleased: 좋아|좋은|좋다|사랑|멋지|멋진|행복|즐거|즐기|즐겨|재미|훌륭|고마워|대단
  downcast: 슬프|슬퍼|미안|죽|싫어|끔찍|나쁘|외로|유감|아프
"""


def _cues() -> Mapping[str, Mapping[str, str]]:
    cues: dict[str, dict[str, str]] = {}
    act = ""
    for line in _TABLE.strip().split("\n"):
        if not line.startswith(" "):
            of_language = cues.setdefault(line, {})
        elif line.startswith("    "):
            of_language[act] += line[4:]
        else:
            act, _, pattern = line.strip(" ").partition(": ")
            of_language[act] = pattern
    return cues


CUES = _cues()
"""Language -> act or mood -> cues."""
